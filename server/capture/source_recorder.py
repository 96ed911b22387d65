"""The rows of an encoder, computed part by part once the encoder has run: from the queries and keys of its layers.

Queries and keys grow with the length of the source. All rows together grow with its square.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ...kernels import AttentionParams, AttentionTensors, KeyWeighting, new_attention_tensors, rows
from .context import LayerKey, layer_key_of
from .plan import CapturePlan


class SourceRecorder:
    """An `Observer` that keeps the queries and keys of the encoder's layers whose rows a plan keeps."""

    def __init__(self, plan: CapturePlan, num_positions: int, left_out: Tensor | None = None) -> None:
        """`num_positions` is the length of the source, which is the only one of its batch.

        `left_out` says which positions the rows leave out, bool `[1, positions]`.
        """
        self._left_out = left_out
        self._plan = plan
        self._num_positions = num_positions
        self._calls: dict[LayerKey, tuple[Tensor, Tensor, KeyWeighting, AttentionParams]] = {}

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> None:
        """Takes the tensors of one attention call (see `Observer`)."""
        layer_key = layer_key_of(module)
        if layer_key is not None and layer_key.kind == "encoder_self" and layer_key in self._plan.layer_specs:
            method = self._plan.method
            factors = method.factors(layer_key, value) if method.has_factors else None
            self._calls[layer_key] = query, key, KeyWeighting(self._left_out, factors), params

    def compute(self, queries: slice) -> AttentionTensors:
        """Computes the rows of some queries, a slice with begin and end."""
        plan = self._plan
        device = next(iter(self._calls.values()))[0].device
        tensors = new_attention_tensors(
            1,
            queries.stop - queries.start,
            self._num_positions,
            math.prod(plan.shape("encoder_self")),
            encoding=plan.encoding,
            top_k=plan.top_k,
            pools_layers=plan.pools_layers,
            has_shares=plan.leaves_out_special,
            device=device,
        )
        for layer_key, (query, key, weighting, params) in self._calls.items():
            part = params.for_queries(queries)
            rows(query[:, :, queries], key, part, tensors, plan.layer_specs[layer_key], weighting)
        return tensors
