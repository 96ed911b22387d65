"""What a request wants kept of the attention, and where the rows of each layer go.

Knows sites and the kernels' results; does not know what a token is or how a message looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ...kernels import (
    ENCODINGS,
    AttentionTensors,
    Encoding,
    LayerSpec,
    Reduction,
    layout_into,
    new_attention_tensors,
    write_probabilities,
)
from .attention_function import AttentionKind, LayerKey, RecordTarget

Row = Literal["predicting", "reading"]

_POSITION_BYTES = _SCALE_BYTES = 4


@dataclass(frozen=True)
class Pair:
    """One attention head: a layer and a head in it, both from 0, and its weight in a mean or sum over pairs."""

    layer: int
    head: int
    weight: float | None = None


@dataclass(frozen=True)
class CapturePlan:
    """A capture with every default filled in and checked against the model.

    `layers` says for each kind which of its layers are kept, in this order. With `pairs` single heads are kept instead
    and `layers` is empty for every kind. `heads` is how many heads the layers of each kind have.
    """

    kinds: tuple[AttentionKind, ...]
    layers: dict[AttentionKind, tuple[int, ...]]
    heads: Mapping[AttentionKind, int] = field(default_factory=dict[AttentionKind, int])
    pairs: tuple[Pair, ...] = ()
    over_heads: Reduction | None = None
    over_layers: Reduction | None = None
    row: Row = "predicting"
    encoding: Encoding = "float32"
    top_k: int = 0
    first_step: int = 0
    end_step: int | None = None

    def covers(self, step: int) -> bool:
        """Whether a step carries attention."""
        return bool(self.kinds) and self.first_step <= step and (self.end_step is None or step < self.end_step)

    @cached_property
    def weights(self) -> tuple[float, ...] | None:
        """One for each pair, 1 where none is given; None where none is given at all."""
        if all(pair.weight is None for pair in self.pairs):
            return None
        return tuple(1.0 if pair.weight is None else pair.weight for pair in self.pairs)

    def shape(self, kind: AttentionKind) -> tuple[int, ...]:
        """The axes after positions: `[layers, heads]`, `[layers]`, `[pairs]` or none."""
        if self.pairs:
            return () if self.over_heads else (len(self.pairs),)
        if self.over_layers:
            return ()
        return (len(self.layers[kind]),) if self.over_heads else (len(self.layers[kind]), self.heads[kind])

    def row_bytes(self, kind: AttentionKind, positions: int) -> int:
        """The most bytes that a row of a kind takes, of all its layers and heads."""
        kept = min(self.top_k, positions) if self.top_k else positions
        number = ENCODINGS[self.encoding].itemsize + (_POSITION_BYTES if self.top_k else 0)
        return math.prod(self.shape(kind)) * (kept * number + (_SCALE_BYTES if self.encoding == "uint8" else 0))

    @cached_property
    def parts(self) -> dict[LayerKey, LayerSpec]:
        """What each captured layer gives to the result of its kind."""
        make = self._parts_of_pairs if self.pairs else self._parts_of_layers
        return {LayerKey(kind, layer): part for kind in self.kinds for layer, part in make(kind).items()}

    @property
    def pools_layers(self) -> bool:
        """Whether several layers become one, so that a result needs room for what they have become so far."""
        return any(part.pools_layers for part in self.parts.values())

    def _parts_of_layers(self, kind: AttentionKind) -> dict[int, LayerSpec]:
        layers = self.layers[kind]
        if self.over_layers:
            fold = LayerSpec(over_heads=self.over_heads, over_layers=self.over_layers, num_layers=len(layers))
            first, last = min(layers), max(layers)  # they come as the model runs them
            return {layer: fold._replace(is_first=layer == first, is_last=layer == last) for layer in layers}
        width = 1 if self.over_heads else self.heads[kind]
        return {layer: LayerSpec(over_heads=self.over_heads, column=i * width) for i, layer in enumerate(layers)}

    def _parts_of_pairs(self, kind: AttentionKind) -> dict[int, LayerSpec]:  # noqa: ARG002
        layers = sorted({pair.layer for pair in self.pairs})
        return {layer: self._part_of_pairs(layer, layers) for layer in layers}

    def _part_of_pairs(self, layer: int, layers: list[int]) -> LayerSpec:
        places = tuple(place for place, pair in enumerate(self.pairs) if pair.layer == layer)
        part = LayerSpec(heads=tuple(self.pairs[place].head for place in places))
        if self.over_heads is None:
            return part._replace(columns=places)
        weights = self.weights
        return part._replace(
            over_heads=self.over_heads,
            over_layers=self.over_heads,
            weights=None if weights is None else tuple(weights[place] for place in places),
            divisor=float(len(self.pairs)) if weights is None else sum(weights),
            is_first=layer == layers[0],
            is_last=layer == layers[-1],
            pools_all_heads=True,
        )


class PassRecorder:
    """The rows of one forward pass that a plan keeps, for one sequence, or for those of a batch that share the plan.

    `queries` is the slice of this pass's decoder queries that are kept; an encoder's are all kept. `positions` is how
    many a row of each kind has. A sliding window's cache has forgotten the first ones: their share is 0. Of a batch,
    `rows` are kept, `count` of them; None: all.
    """

    def __init__(
        self,
        plan: CapturePlan,
        queries: slice,
        positions: Mapping[AttentionKind, int],
        rows: Tensor | None = None,
        count: int = 1,
    ) -> None:
        self._plan = plan
        self._queries = queries
        self._positions = positions
        self._rows = rows
        self._count = count
        self._results: dict[AttentionKind, AttentionTensors] = {}

    def targets(self, site: LayerKey, shape: tuple[int, int, int, int], device: torch.device) -> list[RecordTarget]:
        """As `Recorder` has it."""
        part = self._plan.parts.get(site)
        if part is None:
            return []
        target = self._target(site, part, shape[2], device)
        return [] if target is None else [target]

    def targets_of_step(self, device: torch.device) -> Iterator[tuple[LayerKey, RecordTarget]]:
        """Where the rows of a pass of one query go, for all sites at once."""
        for site, part in self._plan.parts.items():
            target = self._target(site, part, 1, device) if site.kind in self._positions else None
            if target is not None:
                yield site, target

    def _target(self, site: LayerKey, part: LayerSpec, length: int, device: torch.device) -> RecordTarget | None:
        """Where the rows of a site go in a pass of so many queries; None if none is kept."""
        queries = self._kept(site.kind, length)
        if queries.start >= queries.stop:
            return None
        return RecordTarget(self._result(site.kind, queries, device), part, queries, self._rows)

    def record_matrices(self, matrices: Mapping[AttentionKind, list[Tensor]]) -> None:
        """Keeps what a plan wants of a model's own matrices `[1, H, T, S]`, for models that give nothing else."""
        for kind, layers in matrices.items():
            if kind not in self._plan.kinds:
                continue
            queries = self._kept(kind, layers[0].shape[2])
            if queries.start >= queries.stop:
                continue
            result = self._result(kind, queries, layers[0].device)
            if self._plan.pairs:
                for site, part in self._plan.parts.items():
                    if site.kind == kind:
                        rows = layers[site.layer][:, :, queries].float()
                        write_probabilities(rows, result, part, slice(0, rows.shape[2]))
            else:
                wanted = [layers[layer][:, :, queries] for layer in self._plan.layers[kind]]
                layout_into(wanted, result, over_heads=self._plan.over_heads, over_layers=self._plan.over_layers)

    def result(self, kind: AttentionKind) -> AttentionTensors | None:
        """What was kept of a kind; None if nothing was wanted."""
        return self._results.get(kind)

    def _kept(self, kind: AttentionKind, length: int) -> slice:
        kept = slice(None) if kind == "encoder_self" else self._queries
        return slice(*kept.indices(length))

    def _result(self, kind: AttentionKind, queries: slice, device: torch.device) -> AttentionTensors:
        if kind not in self._results:
            plan, columns = self._plan, 1
            for size in plan.shape(kind):
                columns *= size
            self._results[kind] = new_attention_tensors(
                self._count,
                queries.stop - queries.start,
                self._positions[kind],
                columns,
                encoding=plan.encoding,
                top_k=plan.top_k,
                pools_layers=plan.pools_layers,
                device=device,
            )
        return self._results[kind]
