"""Writes probabilities into `AttentionTensors` in plain torch: reduces heads, reduces layers, encodes."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_tensors import AttentionTensors, LayerSpec, device_constant
from .encoding_reference import pack
from .key_weighting import PLAIN, KeyWeighting, weigh
from .reduction_reference import combine_partials, finish_reduction, reduce_partial


def write_probabilities(
    attention: Tensor, out: AttentionTensors, spec: LayerSpec, queries: slice, weighting: KeyWeighting = PLAIN
) -> None:
    """Does what `write_heads` does, from the probabilities of all heads, `[B, H, queries, S]`."""
    if spec.heads is not None:
        attention = attention[:, device_constant(spec.heads, torch.int32, attention.device)]
    write_heads(attention, out, spec, queries, weighting)


def write_heads(
    attention: Tensor, out: AttentionTensors, spec: LayerSpec, queries: slice, weighting: KeyWeighting = PLAIN
) -> None:
    """Writes a slice of queries, from the probabilities of the heads of `spec`, float32 `[B, heads, queries, S]`."""
    if not weighting.is_plain:
        attention = weigh(attention, out, spec, queries, weighting)
    missing = out.length - attention.shape[3]
    if missing:
        attention = torch.nn.functional.pad(attention, (missing, 0))
    index: slice | Tensor
    if spec.over_heads is None:
        columns = attention.permute(0, 2, 3, 1)
        if spec.columns is None:
            index = slice(spec.column, spec.column + columns.shape[3])
        else:
            index = device_constant(spec.columns, torch.int32, attention.device)
    else:
        reduced = _reduce(attention, out, spec, queries)
        if reduced is None:
            return
        columns, index = reduced.unsqueeze(-1), slice(spec.column, spec.column + 1)
    if out.is_dense_float:
        out.values[:, queries, :, index] = columns.to(out.values.dtype)
        return
    packed = pack(columns, out.values.dtype, out.top_k)
    out.values[:, queries, :, index] = packed.values
    if out.scales is not None:
        assert packed.scales is not None
        out.scales[:, queries, index] = packed.scales
    if out.positions is not None:
        assert packed.positions is not None
        out.positions[:, queries, :, index] = packed.positions


def _reduce(attention: Tensor, out: AttentionTensors, spec: LayerSpec, queries: slice) -> Tensor | None:
    """Reduces heads, then layers: `[B, queries, S]`; None while more layers are to come."""
    assert spec.over_heads is not None
    if spec.weights is not None:
        attention = attention * device_constant(spec.weights, torch.float32, attention.device)[:, None, None]
    # In a decode step, heads are made contiguous: torch adds columns in another order at the end of a row, and the
    # length of rows depends on the other sequences of the batch.
    if attention.shape[2] == 1 and not attention.is_cuda:
        value = reduce_partial(attention.transpose(1, 3).contiguous(), spec.over_heads, 3).transpose(1, 2)
    else:
        value = reduce_partial(attention, spec.over_heads, 1)
    divisor = spec.mean_divisor(attention.shape[1])
    if not spec.pools_all_heads:
        value = finish_reduction(value, spec.over_heads, divisor)
    if spec.over_layers is None:
        return value
    assert out.accumulator is not None
    accumulator = out.accumulator[:, queries]
    if not spec.pools_all_heads:
        value = reduce_partial(value.unsqueeze(1), spec.over_layers, 1)
        divisor = spec.num_layers
    if not spec.is_first:
        value = combine_partials(accumulator, value, spec.over_layers)
    if not spec.is_last:
        accumulator.copy_(value)
        return None
    return finish_reduction(value, spec.over_layers, divisor)
