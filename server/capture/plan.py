"""CapturePlan: which attention one request keeps, and what each layer contributes.

This module knows layer keys and the kernels' `LayerSpec`; it does not know what a token is or how a message looks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from ...kernels import ENCODINGS, Encoding, LayerSpec, Reduction
from .context import AttentionKind, LayerKey

Row = Literal["predicting", "reading"]

_POSITION_BYTES = _SCALE_BYTES = 4


@dataclass(frozen=True)
class Head:
    """One attention head: its layer, its number within the layer, and its weight in a mean or sum over pairs.

    Layers and heads count from 0.
    """

    layer: int
    head: int
    weight: float | None = None


@dataclass(frozen=True)
class CapturePlan:
    """What one request keeps of the attention, with every default filled in and checked against the model.

    `layers` lists the kept layers of each kind, in the order of the message. `num_heads` is the number of heads of a
    layer of each kind. If `pairs` has heads, single heads are kept instead, and `layers` is empty for every kind.
    """

    kinds: tuple[AttentionKind, ...]
    layers: dict[AttentionKind, tuple[int, ...]]
    num_heads: Mapping[AttentionKind, int] = field(default_factory=dict[AttentionKind, int])
    pairs: tuple[Head, ...] = ()
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    row: Row = "predicting"
    encoding: Encoding = "float32"
    top_k: int = 0
    first_step: int = 0
    end_step: int | None = None

    def captures_step(self, step: int) -> bool:
        """Whether a step carries attention."""
        return bool(self.kinds) and self.first_step <= step and (self.end_step is None or step < self.end_step)

    @cached_property
    def weights(self) -> tuple[float, ...] | None:
        """The weight of each pair, 1 for a pair without a weight; None if no pair has a weight."""
        if all(pair.weight is None for pair in self.pairs):
            return None
        return tuple(1.0 if pair.weight is None else pair.weight for pair in self.pairs)

    def shape(self, kind: AttentionKind) -> tuple[int, ...]:
        """Returns the lengths of the axes after positions: `[layers, heads]`, `[layers]`, `[pairs]` or no axis."""
        if self.pairs:
            return () if self.over_heads else (len(self.pairs),)
        if self.over_layers:
            return ()
        num_layers = len(self.layers[kind])
        return (num_layers,) if self.over_heads else (num_layers, self.num_heads[kind])

    def row_bytes(self, kind: AttentionKind, positions: int) -> int:
        """Returns the most bytes that a row of a kind takes, with all layers and heads of the row."""
        kept = min(self.top_k, positions) if self.top_k else positions
        item_bytes = ENCODINGS[self.encoding].itemsize + (_POSITION_BYTES if self.top_k else 0)
        return math.prod(self.shape(kind)) * (kept * item_bytes + (_SCALE_BYTES if self.encoding == "uint8" else 0))

    @cached_property
    def layer_specs(self) -> dict[LayerKey, LayerSpec]:
        """For each kept layer, the columns that the layer fills and how its heads are reduced."""
        specs: dict[LayerKey, LayerSpec] = {}
        for kind in self.kinds:
            by_layer = self._specs_of_pairs() if self.pairs else self._specs_of_layers(kind)
            specs |= {LayerKey(kind, layer): spec for layer, spec in by_layer.items()}
        return specs

    @property
    def pools_layers(self) -> bool:
        """Whether several layers become one: then the tensors need an accumulator."""
        return any(spec.pools_layers for spec in self.layer_specs.values())

    def _specs_of_layers(self, kind: AttentionKind) -> dict[int, LayerSpec]:
        layers = self.layers[kind]
        if self.over_layers:
            spec = LayerSpec(over_heads=self.over_heads, over_layers=self.over_layers, num_layers=len(layers))
            first, last = min(layers), max(layers)  # the model runs layers in this order
            return {layer: spec._replace(is_first=layer == first, is_last=layer == last) for layer in layers}
        width = 1 if self.over_heads else self.num_heads[kind]
        return {layer: LayerSpec(over_heads=self.over_heads, column=i * width) for i, layer in enumerate(layers)}

    def _specs_of_pairs(self) -> dict[int, LayerSpec]:
        layers = sorted({pair.layer for pair in self.pairs})
        return {layer: self._spec_of_pairs(layer, layers) for layer in layers}

    def _spec_of_pairs(self, layer: int, layers: list[int]) -> LayerSpec:
        """Returns what one of the pairs' `layers` contributes."""
        columns = tuple(column for column, pair in enumerate(self.pairs) if pair.layer == layer)
        spec = LayerSpec(heads=tuple(self.pairs[column].head for column in columns))
        if self.over_heads is None:
            return spec._replace(columns=columns)
        weights = self.weights
        return spec._replace(
            over_heads=self.over_heads,
            over_layers=self.over_heads,
            weights=None if weights is None else tuple(weights[column] for column in columns),
            divisor=float(len(self.pairs)) if weights is None else sum(weights),
            is_first=layer == layers[0],
            is_last=layer == layers[-1],
            pools_all_heads=True,
        )
