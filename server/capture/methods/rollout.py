"""Attention rollout: how attention flows through the layers (Abnar and Zuidema 2020, arXiv:2005.00928, section 3).

A is the mean over the heads of a layer, and I is the identity: half of what a part of a layer gives is its input, by
the residual connection. R[0] = I.

- Encoder self-attention: R[l] = (A[l] + I) / 2 R[l - 1], as in the paper. So is decoder self-attention of a model
  without an encoder.
- A decoder with an encoder: the paper has no cross-attention. Here a row of the decoder is over the source and the
  target together: R = [R_source, R_target], with R_source[0] = 0 and R_target[0] = I. Each layer has two parts:
  self-attention, R' = (A[l] + I) / 2 R[l - 1], and then cross-attention with the matrix C[l]:
  R_target[l] = R'_target / 2, and R_source[l] = R'_source / 2 + C[l] E / 2. E is the rollout of the encoder's last
  layer. `cross` is R_source, and `decoder_self` is R_target. A row of both together sums to 1.

A row after layer l needs the rows of all earlier positions after layer l - 1. The combiner keeps these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ....kernels import PLAIN, KeyWeighting, LayerSpec, new_attention_tensors, write_probabilities
from ..arrays import AttentionArrays, build_arrays, list_tensors
from ..context import AttentionKind
from ..plan import WEIGHTS, CapturePlan, Method, MethodFieldError, ProbedModel, RowCombiner


class Rollout(Method):
    """The rows after each kept layer, from all layers up to this layer."""

    name: ClassVar[str] = "rollout"

    def __init__(self, heads: Mapping[AttentionKind, tuple[int, ...]]) -> None:
        """`heads` has, for each kind, the number of heads of each layer."""
        self._heads = heads

    @classmethod
    def for_model(cls, probed: ProbedModel) -> Rollout | None:
        """Returns the method; None for a decoder with layers that have only one of self- and cross-attention."""
        cross, own = (len(probed.heads.get(kind, ())) for kind in ("cross", "decoder_self"))
        return cls(probed.heads) if cross in (0, own) else None

    def complete(self, plan: CapturePlan) -> CapturePlan:
        """Returns the plan with the heads reduced to their mean. Raises MethodFieldError."""
        if plan.pairs:
            raise MethodFieldError("heads.list", "a rollout takes the mean over all heads of a layer: name layers")
        if plan.over_heads not in (None, "mean"):
            raise MethodFieldError("over_heads", "a rollout takes the mean over the heads of a layer")
        if plan.over_layers is not None:
            raise MethodFieldError("over_layers", "a rollout goes over the layers itself: name the layers to send")
        return replace(plan, over_heads="mean")

    def recorded(self, plan: CapturePlan) -> CapturePlan:
        """Returns the mean over heads of all layers, of all kinds that the rows of the plan need."""
        kinds = plan.kinds if plan.kinds == ("encoder_self",) else tuple(self._heads)
        layers: dict[AttentionKind, tuple[int, ...]] = {kind: tuple(range(len(self._heads[kind]))) for kind in kinds}
        heads = {kind: self._heads[kind][0] for kind in kinds}
        return replace(
            plan,
            kinds=kinds,
            layers=layers,
            num_heads=heads,
            encoding="float32",
            top_k=0,
            leaves_out_special=False,
            method=WEIGHTS,
        )

    def state_bytes(self, plan: CapturePlan, source: int, target: int) -> int:
        """Returns the bytes of a sequence's rows: quadratic in its length."""
        recorded = self.recorded(plan)
        num_bytes = 0
        if "encoder_self" in recorded.kinds:
            num_bytes += 4 * source * source * (len(recorded.layers["encoder_self"]) + 2)
        if "decoder_self" in recorded.kinds:
            width = target + (source if "cross" in recorded.kinds else 0)
            num_bytes += 4 * target * width * len(recorded.layers["decoder_self"])
        return num_bytes

    def new_combiner(self, plan: CapturePlan, source: int, target: int) -> RowCombiner:
        """Makes the combiner of a sequence (see `Method`)."""
        recorded = self.recorded(plan)
        return _Combiner(plan, len(recorded.layers.get("decoder_self", ())), source, target)


class _Combiner:
    """The rollout of one sequence, in float32. A `RowCombiner`."""

    def __init__(self, plan: CapturePlan, num_layers: int, source: int, target: int) -> None:
        self._plan = plan
        self._num_layers = num_layers
        self._source = source  # positions of the source; 0 where the decoder reads the source
        self._target = target
        self._encoder: Tensor | None = None  # E, [source, source]
        self._inputs: Tensor | None = None  # R[l - 1] of each layer l, [layers, target, source + target]
        self._num_read = 0

    def read_source(
        self, recorded: AttentionArrays, left_out: Mapping[AttentionKind, Tensor]
    ) -> AttentionArrays | None:
        """Rolls the encoder out (see `RowCombiner`)."""
        attention = torch.from_numpy(recorded.values).permute(2, 0, 1)  # [layers, queries, positions]
        rows = torch.eye(attention.shape[1])
        after: list[Tensor] = []
        for layer in attention:
            rows = (layer @ rows).add_(rows).mul_(0.5)
            after.append(rows)
        self._encoder = rows
        return self._finish("encoder_self", after, left_out) if "encoder_self" in self._plan.kinds else None

    def read_target(
        self, recorded: Mapping[AttentionKind, AttentionArrays], left_out: Mapping[AttentionKind, Tensor]
    ) -> dict[AttentionKind, AttentionArrays]:
        """Rolls the next queries of the decoder out (see `RowCombiner`)."""
        own = torch.from_numpy(recorded["decoder_self"].values).permute(2, 0, 1)
        cross = torch.from_numpy(recorded["cross"].values).permute(2, 0, 1) if "cross" in recorded else None
        source = 0 if cross is None else self._source
        if self._inputs is None:
            self._inputs = torch.zeros(self._num_layers, self._target, source + self._target)
        begin, count = self._num_read, own.shape[1]
        end = self._num_read = begin + count
        rows = torch.zeros(count, source + self._target)
        rows[torch.arange(count), source + begin + torch.arange(count)] = 1
        after: list[Tensor] = []
        for layer in range(self._num_layers):
            self._inputs[layer, begin:end] = rows
            rows = (own[layer, :, :end] @ self._inputs[layer, :end]).add_(rows).mul_(0.5)
            if cross is not None:
                assert self._encoder is not None
                rows.mul_(0.5)
                rows[:, :source] += 0.5 * (cross[layer] @ self._encoder)
            after.append(rows)
        found: dict[AttentionKind, AttentionArrays] = {}
        if "cross" in self._plan.kinds:
            found["cross"] = self._finish("cross", [rows[:, :source] for rows in after], left_out)
        if "decoder_self" in self._plan.kinds:
            own_rows = [rows[:, source : source + end] for rows in after]
            found["decoder_self"] = self._finish("decoder_self", own_rows, left_out)
        return found

    def take_back(self, num_queries: int) -> None:
        """Forgets the decoder's queries behind so many (see `RowCombiner`). The next queries replace their inputs."""
        self._num_read = num_queries

    def _finish(
        self, kind: AttentionKind, after: list[Tensor], left_out: Mapping[AttentionKind, Tensor]
    ) -> AttentionArrays:
        """Encodes rows `[queries, positions]` after each layer as the plan says. The kept layers count as heads."""
        plan = self._plan
        rows = torch.stack([after[layer] for layer in plan.layers[kind]])[None]
        _, columns, queries, positions = rows.shape
        tensors = new_attention_tensors(
            1,
            queries,
            positions,
            columns,
            encoding=plan.encoding,
            top_k=plan.top_k,
            has_shares=plan.leaves_out_special,
        )
        weighting = KeyWeighting(left_out[kind][None, :positions]) if plan.leaves_out_special else PLAIN
        write_probabilities(rows, tensors, LayerSpec(), slice(0, queries), weighting)
        arrays = build_arrays(tensors, [tensor.numpy() for tensor in list_tensors(tensors)], plan.shape(kind))
        assert arrays is not None
        return arrays
