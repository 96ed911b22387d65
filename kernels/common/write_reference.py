"""Writes probabilities into a result, in plain torch: heads folded, then layers, then packed."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_tensors import AttentionTensors, LayerSpec, constant
from .encoding_reference import pack
from .reduction_reference import combine, finish, partial


def write_heads(attention: Tensor, result: AttentionTensors, part: LayerSpec, queries: slice) -> None:
    """As `write`, from the probabilities of all heads, `[B, H, queries, S]`."""
    if part.heads is not None:
        attention = attention[:, constant(part.heads, torch.int32, attention.device)]
    write(attention, result, part, queries)


def write(attention: Tensor, result: AttentionTensors, part: LayerSpec, queries: slice) -> None:
    """Folds and writes probabilities, float32 `[B, heads of the part, queries, S]`, into the queries of a result."""
    missing = result.length - attention.shape[3]
    if missing:
        attention = torch.nn.functional.pad(attention, (missing, 0))
    if part.over_heads is None:
        columns = attention.permute(0, 2, 3, 1)
        if part.columns is None:
            place: slice | Tensor = slice(part.column, part.column + columns.shape[3])
        else:
            place = constant(part.columns, torch.int32, attention.device)
    else:
        folded = _fold(attention, result, part, queries)
        if folded is None:
            return
        columns, place = folded.unsqueeze(-1), slice(part.column, part.column + 1)
    if result.is_dense_float:
        result.values[:, queries, :, place] = columns.to(result.values.dtype)
        return
    packed = pack(columns, result.values.dtype, result.top_k)
    result.values[:, queries, :, place] = packed.values
    if result.scales is not None:
        assert packed.scales is not None
        result.scales[:, queries, place] = packed.scales
    if result.positions is not None:
        assert packed.positions is not None
        result.positions[:, queries, :, place] = packed.positions


def _fold(attention: Tensor, result: AttentionTensors, part: LayerSpec, queries: slice) -> Tensor | None:
    """Heads, then layers, become one: `[B, queries, S]`; None as long as layers are to come."""
    assert part.over_heads is not None
    if part.weights is not None:
        attention = attention * constant(part.weights, torch.float32, attention.device)[:, None, None]
    # Of a step, heads side by side: torch adds up columns in another order at the end of a row, and how long rows are
    # depends on the others of the batch.
    if attention.shape[2] == 1 and not attention.is_cuda:
        value = partial(attention.transpose(1, 3).contiguous(), part.over_heads, 3).transpose(1, 2)
    else:
        value = partial(attention, part.over_heads, 1)
    if not part.as_one:
        value = finish(value, part.over_heads, part.divisor_of(attention.shape[1]))
    if part.over_layers is None:
        return value
    assert result.total is not None
    total = result.total[:, queries]
    if not part.as_one:
        value = partial(value.unsqueeze(1), part.over_layers, 1)
    if not part.first:
        value = combine(total, value, part.over_layers)
    if not part.last:
        total.copy_(value)
        return None
    return finish(value, part.over_layers, part.divisor_of(attention.shape[1]) if part.as_one else part.layer_count)
