"""CapturePlan: which attention one request keeps, and what each layer contributes. Method: what the numbers measure.

This module knows layer keys and the kernels' `LayerSpec`; it does not know what a token is or how a message looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from ...kernels import ENCODINGS, Encoding, LayerSpec, Reduction
from .arrays import AttentionArrays
from .context import AttentionKind, LayerKey

Row = Literal["predicting", "reading"]

_POSITION_BYTES = _SCALE_BYTES = _SHARE_BYTES = 4


class ProbedModel(NamedTuple):
    """What a method may look at while a model loads."""

    heads: Mapping[AttentionKind, tuple[int, ...]]  # for each kind: the number of query heads of each layer
    modules: Mapping[LayerKey, nn.Module]  # the attention layers; empty where the model gives whole matrices
    run: Callable[[], object]  # runs the model on a few tokens
    is_half: bool  # whether the model computes in half precision


class MethodFieldError(Exception):
    """A method cannot make what a capture asks for. `field` is the name of the capture's field that is to blame."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


class RowCombiner(Protocol):
    """Makes the rows of one sequence from recorded rows of all its queries. For the engine's thread, on the host.

    Recorded rows are those of `Method.recorded`. `left_out` says which positions a row leaves out: bool `[positions]`.
    """

    def read_source(
        self, recorded: AttentionArrays, left_out: Mapping[AttentionKind, Tensor]
    ) -> AttentionArrays | None:
        """Takes the encoder's rows. Returns the rows of encoder self-attention; None if the plan has no such rows."""
        ...

    def read_target(
        self, recorded: Mapping[AttentionKind, AttentionArrays], left_out: Mapping[AttentionKind, Tensor]
    ) -> dict[AttentionKind, AttentionArrays]:
        """Takes the decoder's rows of the queries that come next. Returns the rows of these queries."""
        ...

    def take_back(self, num_queries: int) -> None:
        """Forgets the decoder's queries behind so many. What the combiner has read of the source stays."""
        ...


class Method:
    """What the numbers of a row measure. By itself: the attention probabilities as they are.

    A method belongs to one loaded model: it may hold tensors of the model. It knows attention layers and tensors; it
    does not know requests or messages.
    """

    name: ClassVar[str] = "weights"
    has_factors: ClassVar[bool] = False  # whether `factors` multiplies the probabilities

    @classmethod
    def for_model(cls, probed: ProbedModel) -> Method | None:  # noqa: ARG003
        """Returns the method for a model; None if the model cannot have the method."""
        return WEIGHTS

    def factors(self, layer_key: LayerKey, value: Tensor) -> Tensor:
        """Returns the factors of keys, float32 `[B, H, S]`, from the values `[B, Hkv, S, D]` of the same keys.

        The factor of a key depends on the value of this key alone, and is finite for finite values.
        """
        raise NotImplementedError

    def describe(self) -> Method:
        """Returns the method without tensors: a process without the weights checks requests with it."""
        return self

    def complete(self, plan: CapturePlan) -> CapturePlan:
        """Returns the plan with the defaults of the method. Raises MethodFieldError."""
        return plan

    def recorded(self, plan: CapturePlan) -> CapturePlan:
        """Returns what forward passes record for a plan."""
        return plan

    def state_bytes(self, plan: CapturePlan, source: int, target: int) -> int:  # noqa: ARG002
        """Returns how many bytes the combiner of a sequence with so many positions takes."""
        return 0

    def new_combiner(self, plan: CapturePlan, source: int, target: int) -> RowCombiner | None:  # noqa: ARG002
        """Makes the combiner of a sequence with at most so many positions of source and target.

        None: rows are sent as they are recorded.
        """
        return None


WEIGHTS = Method()


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
    method: Method = WEIGHTS
    leaves_out_special: bool = False  # whether rows leave out special tokens, and carry the share of these tokens

    @cached_property
    def recorded(self) -> CapturePlan:
        """What forward passes record: for most methods this plan itself."""
        return self.method.recorded(self) if self.kinds else self

    def captures_step(self, step: int) -> bool:
        """Whether a step carries attention."""
        return self.captures_steps and self.first_step <= step and (self.end_step is None or step < self.end_step)

    @cached_property
    def captures_steps(self) -> bool:
        """Whether any step carries attention: encoder self-attention belongs to the source."""
        return any(kind != "encoder_self" for kind in self.kinds)

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
        more_bytes = (_SCALE_BYTES if self.encoding == "uint8" else 0) + _SHARE_BYTES * self.leaves_out_special
        return math.prod(self.shape(kind)) * (kept * item_bytes + more_bytes)

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
            num_pooled_heads=len(self.pairs),
        )
