"""The attention rows of one forward pass: which rows a plan keeps, and the tensors that receive the rows.

This module knows plans, layer keys and the kernels' tensors; it does not know what a token is or how a message looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from ...kernels import (
    AttentionTensors,
    KeyWeighting,
    LayerSpec,
    Reduction,
    layout_into,
    new_attention_tensors,
    write_probabilities,
)
from .context import AttentionKind, LayerKey, RecordTarget
from .plan import CapturePlan

# Returns the factors `[rows, H, S]` of the keys of a layer, from the values `[B, Hkv, S, D]` of a batch.
Factors = Callable[[LayerKey, Tensor], Tensor]


class PassRecorder:
    """A `Recorder` that keeps the rows of one plan from one forward pass.

    The pass is of one sequence, or of the sequences of a batch that share the plan. `queries` is the slice of the
    pass's decoder queries whose rows are kept; an encoder's queries are all kept. `positions` is the number of
    positions of a row, for each kind. The cache of a sliding window has dropped the first positions: their share is 0.
    In a batch, the rows of the `count` sequences in `rows` are kept; None: the rows of all sequences. `left_out` says
    which positions of each kind the kept rows leave out, bool `[1 or rows, positions]`. `factors` keeps the factors of
    keys from step to step; None: they are computed from all values of the pass.
    """

    def __init__(
        self,
        plan: CapturePlan,
        queries: slice,
        positions: Mapping[AttentionKind, int],
        rows: Tensor | None = None,
        count: int = 1,
        left_out: Mapping[AttentionKind, Tensor] | None = None,
        factors: Factors | None = None,
    ) -> None:
        self._plan = plan
        self._queries = queries
        self._positions = positions
        self._rows = rows
        self._count = count
        self._left_out = left_out or {}
        self._factors = factors or self._compute_factors
        self._tensors: dict[AttentionKind, AttentionTensors] = {}

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> list[RecordTarget]:
        """Returns the target of a layer; no target where the plan keeps nothing of the layer (see `Recorder`)."""
        layer_spec = self._plan.layer_specs.get(layer_key)
        if layer_spec is None:
            return []
        target = self._target(layer_key, layer_spec, shape[2], device)
        return [] if target is None else [target]

    def step_targets(self, device: torch.device) -> Iterator[tuple[LayerKey, RecordTarget]]:
        """Yields the targets of a pass with one query, for all layers."""
        for layer_key, layer_spec in self._plan.layer_specs.items():
            is_present = layer_key.kind in self._positions
            target = self._target(layer_key, layer_spec, 1, device) if is_present else None
            if target is not None:
                yield layer_key, target

    def _target(
        self, layer_key: LayerKey, layer_spec: LayerSpec, num_queries: int, device: torch.device
    ) -> RecordTarget | None:
        """Returns the target of a layer in a pass with so many queries; None where no query is kept."""
        queries = self._kept_queries(layer_key.kind, num_queries)
        if queries.start >= queries.stop:
            return None
        return RecordTarget(
            self._tensors_of(layer_key.kind, queries, device),
            layer_spec,
            queries,
            self._rows,
            self._left_out.get(layer_key.kind) if self._plan.leaves_out_special else None,
            partial(self._factors, layer_key) if self._plan.method.has_factors else None,
        )

    def _compute_factors(self, layer_key: LayerKey, value: Tensor) -> Tensor:
        return self._plan.method.factors(layer_key, value if self._rows is None else value[self._rows])

    def record_matrices(self, matrices: Mapping[AttentionKind, list[Tensor]]) -> None:
        """Keeps what the plan wants of a model's own matrices `[1, H, T, S]`, one matrix for each layer of a kind.

        This is the fallback for models whose attention layers do not call `attend`.
        """
        for kind, layers in matrices.items():
            if kind not in self._plan.kinds:
                continue
            queries = self._kept_queries(kind, layers[0].shape[2])
            if queries.start >= queries.stop:
                continue
            tensors = self._tensors_of(kind, queries, layers[0].device)
            # The caches of windows and of whole texts differ in length: a window has dropped the first positions.
            longest = max(layer.shape[3] for layer in layers)
            layers = [functional.pad(layer, (longest - layer.shape[3], 0)) for layer in layers]
            if self._plan.leaves_out_special:
                self._weigh_matrices(kind, layers, queries)
            elif self._plan.pairs:
                pairs, over_heads = self._stack_pairs(layers, queries)
                layout_into([pairs], tensors, over_heads=over_heads)
            else:
                kept = [layers[layer][:, :, queries] for layer in self._plan.layers[kind]]
                layout_into(kept, tensors, over_heads=self._plan.over_heads, over_layers=self._plan.over_layers)

    def _weigh_matrices(self, kind: AttentionKind, layers: list[Tensor], queries: slice) -> None:
        """Keeps the rows of matrices that leave out positions."""
        specs = self._plan.layer_specs.items()
        for layer_key, layer_spec in sorted(item for item in specs if item[0].kind == kind):
            matrix = layers[layer_key.layer][:, :, queries].float()
            num_queries, positions = matrix.shape[2:]
            target = self._target(layer_key, layer_spec, layers[0].shape[2], matrix.device)
            assert target is not None
            assert target.left_out is not None
            weighting = KeyWeighting(target.left_out[:, target.left_out.shape[1] - positions :])
            write_probabilities(matrix, target.tensors, layer_spec, slice(0, num_queries), weighting)

    def _stack_pairs(self, layers: list[Tensor], queries: slice) -> tuple[Tensor, Reduction | None]:
        """Returns the plan's pairs as the heads of one matrix `[1, pairs, T, S]`, and how these heads are reduced.

        A weighted mean becomes a sum: each pair is multiplied by its share of the weights.
        """
        plan = self._plan
        stacked = torch.stack([layers[pair.layer][:, pair.head, queries] for pair in plan.pairs], 1)
        if plan.weights is None or plan.over_heads is None:
            return stacked, plan.over_heads
        divisor = sum(plan.weights) if plan.over_heads == "mean" else 1.0
        factors = torch.tensor([weight / divisor for weight in plan.weights], device=stacked.device)
        return stacked.float() * factors[:, None, None], "sum"

    def result(self, kind: AttentionKind) -> AttentionTensors | None:
        """Returns the recorded rows of a kind; None where nothing was recorded."""
        return self._tensors.get(kind)

    def _kept_queries(self, kind: AttentionKind, num_queries: int) -> slice:
        """Returns the kept queries of a pass with so many queries, as a slice with start and stop."""
        kept = slice(None) if kind == "encoder_self" else self._queries
        return slice(*kept.indices(num_queries))

    def _tensors_of(self, kind: AttentionKind, queries: slice, device: torch.device) -> AttentionTensors:
        """Returns the tensors of a kind, which the kind's first layer allocates."""
        if kind not in self._tensors:
            plan = self._plan
            self._tensors[kind] = new_attention_tensors(
                self._count,
                queries.stop - queries.start,
                self._positions[kind],
                math.prod(plan.shape(kind)),
                encoding=plan.encoding,
                top_k=plan.top_k,
                pools_layers=plan.pools_layers,
                has_shares=plan.leaves_out_special,
                device=device,
            )
        return self._tensors[kind]
