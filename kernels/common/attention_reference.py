"""Attention in plain torch: probabilities of a slice of queries, and the output with a soft cap.

Queries are processed in tiles, so that memory stays bounded however long the prompt is: the scores of a tile take at
most about `_TILE_BYTES`, or the scores of one query where these take more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_params import AttentionParams, select_queries
from .attention_tensors import device_constant

_TILE_BYTES = 32 * 1024**2


def query_tiles(query: Tensor, key: Tensor) -> list[slice]:
    """Returns slices of the queries whose scores are bounded in memory."""
    batch, heads, length, _ = query.shape
    step = max(1, _TILE_BYTES // (4 * batch * heads * key.shape[2]))
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]


def probabilities(
    query: Tensor, key: Tensor, params: AttentionParams, queries: slice, heads: tuple[int, ...] | None = None
) -> Tensor:
    """Returns the probabilities of a slice of queries, which has begin and end: float32 `[B, heads, queries, S]`.

    `heads` selects query heads, in order; None: all. Query heads of a group share a key head without a copy of it.
    """
    groups = query.shape[1] // key.shape[1]
    if queries.start or queries.stop < query.shape[2]:
        query = query[:, :, queries]
    bias, mask = select_queries(params.bias, queries), select_queries(params.mask, queries)
    if heads is not None:
        index = device_constant(heads, torch.int32, query.device)
        query, key, groups = query[:, index], key[:, index // groups], 1
        bias, mask = _select_heads(bias, index), _select_heads(mask, index)
    batch, num_heads, length, width = query.shape
    query = query.float().reshape(batch * key.shape[1], groups * length, width)
    # bmm rather than @: a decode step makes a hundred such products, and torch takes longer to find out what @ means
    # than to multiply.
    scores = torch.bmm(query, key.float().flatten(0, 1).mT).view(batch, num_heads, length, key.shape[2])
    scores = scores.mul_(params.scale)
    if bias is not None:
        scores = scores.add_(bias)
    if params.softcap is not None:
        scores = scores.div_(params.softcap).tanh_().mul_(params.softcap)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores.add_(mask)
    visible = causal_mask(params, queries, key)
    if mask is not None and mask.dtype == torch.bool:
        visible = mask if visible is None else visible & mask
    if visible is not None:
        scores = scores.masked_fill_(~visible, float("-inf"))
    result = scores.softmax(-1)
    # A row that sees no key is zeros, not the NaN of 0 / 0. Without masks and biases every row sees a key.
    if params.no_empty_rows or (visible is None and mask is None and bias is None):
        return result
    return result.masked_fill_((scores == float("-inf")).all(-1, keepdim=True), 0.0)


def causal_mask(params: AttentionParams, queries: slice, key: Tensor) -> Tensor | None:
    """Returns where causality lets queries see a key, bool `[queries, S]`; None where queries see all keys."""
    if not params.causal:
        return None
    first = params.first_position
    last = torch.arange(first + queries.start, first + queries.stop, device=key.device)[:, None]
    return torch.arange(key.shape[2], device=key.device) <= last


def _select_heads(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, index]


def capped_attention(query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
    """Returns the attention output `[B, H, T, D]` with a soft cap, which torch's fused attention does not have.

    Takes query `[B, H, T, D]`, key and value `[B, Hkv, S, D]`, on any device. Queries are processed in tiles.
    """
    groups = query.shape[1] // value.shape[1]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for tile in query_tiles(query, key):
        attention = probabilities(query, key, params, tile).to(value.dtype)
        batch, heads, length, keys = attention.shape
        output = attention.view(batch, heads // groups, groups * length, keys) @ value
        out[:, :, tile] = output.view(batch, heads, length, value.shape[3])
    return out
