"""`KeyWeighting`: what a row is besides probabilities. Some keys are left out, and each key may have a factor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .attention_tensors import AttentionTensors, LayerSpec, device_constant


class KeyWeighting(NamedTuple):
    """Which keys a row leaves out, and by what its numbers are then multiplied.

    First each row is divided by the sum of the keys that are not left out: the row is the softmax over these keys. Then
    each number is multiplied by the factor of its head and key. Heads and layers are reduced after that. A row whose
    keys are all left out is zeros.
    """

    left_out: Tensor | None = None  # bool [1 or B, S]
    factors: Tensor | None = None  # float32 [1 or B, H, S], for query heads

    @property
    def is_plain(self) -> bool:
        """Whether rows are the probabilities as they are."""
        return self.left_out is None and self.factors is None


PLAIN = KeyWeighting()


def check_key_weighting(weighting: KeyWeighting, query: Tensor, keys: int, out: AttentionTensors) -> None:
    """Raises ValueError where a weighting does not fit queries, keys and output. The message begins with the field."""
    batch, heads = query.shape[:2]
    left_out, factors = weighting
    if left_out is not None:
        if left_out.dtype != torch.bool or left_out.shape not in ((1, keys), (batch, keys)):
            raise ValueError(f"weighting.left_out: must be bool [1 or B, S] = {[batch, keys]}")
        if left_out.device != query.device:
            raise ValueError(f"weighting.left_out: must be on {query.device}")
    if (left_out is None) != (out.shares is None):
        raise ValueError("weighting.left_out: the tensors must have been allocated for it, with has_shares")
    if factors is not None:
        if factors.dtype != torch.float32 or factors.shape not in ((1, heads, keys), (batch, heads, keys)):
            raise ValueError(f"weighting.factors: must be float32 [1 or B, H, S] = {[batch, heads, keys]}")
        if factors.device != query.device:
            raise ValueError(f"weighting.factors: must be on {query.device}")


def weigh(attention: Tensor, out: AttentionTensors, spec: LayerSpec, queries: slice, weighting: KeyWeighting) -> Tensor:
    """Returns weighted rows, from the probabilities of the heads of `spec`, float32 `[B, heads, queries, S]`.

    Writes the share of the keys that are left out.
    """
    left_out, factors = weighting
    if left_out is not None:
        hidden = left_out[:, None, None]
        # Sums in float64: a float32 sum would depend on how many positions the other sequences of a batch have.
        shares = attention.masked_fill(~hidden, 0.0).sum(-1, dtype=torch.float64)
        attention = attention.masked_fill(hidden, 0.0)
        kept = attention.sum(-1, dtype=torch.float64, keepdim=True)
        attention = attention / torch.where(kept == 0, 1.0, kept).float()
        add_shares(shares, out, spec, queries)
    if factors is not None:
        if spec.heads is not None:
            factors = factors[:, device_constant(spec.heads, torch.int32, factors.device)]
        attention = attention * factors[:, :, None]
    return attention


def add_shares(shares: Tensor, out: AttentionTensors, spec: LayerSpec, queries: slice) -> None:
    """Adds the shares of a layer's heads, float64 `[B, heads, queries]`, to the columns that the layer fills.

    Where heads or layers are reduced, the column gets the mean of their shares, whatever the reduction and the weights.
    In float32 the last bit of a mean would depend on the number of threads.
    """
    assert out.shares is not None
    target = out.shares[:, queries]
    if spec.over_heads is None:
        columns = shares.permute(0, 2, 1).float()
        if spec.columns is None:
            target[:, :, spec.column : spec.column + columns.shape[2]] = columns
        else:
            target[:, :, device_constant(spec.columns, torch.int32, shares.device)] = columns
        return
    if spec.pools_all_heads:
        value = shares.sum(1) / spec.num_pooled_heads
    else:
        value = shares.mean(1) / (spec.num_layers if spec.pools_layers else 1)
    if spec.pools_layers and not spec.is_first:
        value = value + target[:, :, spec.column]
    target[:, :, spec.column] = value
