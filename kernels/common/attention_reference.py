"""Attention in plain torch: probabilities of some queries, and the output where torch's fused attention has none.

Queries are taken a tile at a time, so that memory stays bounded whatever the prompt: the scores of a tile are at most
about `_TILE_BYTES`, or one query's where that is more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_params import AttentionParams, queries_of
from .attention_tensors import constant

_TILE_BYTES = 32 * 1024**2


def tiles(query: Tensor, key: Tensor) -> list[slice]:
    """The queries, in tiles whose scores are bounded in memory."""
    batch, heads, length, _ = query.shape
    step = max(1, _TILE_BYTES // (4 * batch * heads * key.shape[2]))
    return [slice(begin, min(begin + step, length)) for begin in range(0, length, step)]


def probabilities(
    query: Tensor,
    key: Tensor,
    scoring: AttentionParams,
    queries: slice,
    heads: tuple[int, ...] | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """The probabilities of some queries (a slice with begin and end): float32 `[B, heads, queries, S]`.

    `seen`, bool and of a shape that broadcasts to the same, hides more keys than the scoring. Grouped query heads share
    a key head without a copy of it.
    """
    groups = query.shape[1] // key.shape[1]
    if queries.start or queries.stop < query.shape[2]:
        query = query[:, :, queries]
    bias, mask = queries_of(scoring.bias, queries), queries_of(scoring.mask, queries)
    if heads is not None:
        index = constant(heads, torch.int32, query.device)
        query, key, groups = query[:, index], key[:, index // groups], 1
        bias, mask = _heads_of(bias, index), _heads_of(mask, index)
    batch, head_count, length, width = query.shape
    query = query.float().reshape(batch * key.shape[1], groups * length, width)
    # Flat: a decoding step makes a hundred such products, and torch takes longer to make out what @ means than to
    # count.
    scores = torch.bmm(query, key.float().flatten(0, 1).mT).view(batch, head_count, length, key.shape[2])
    scores = scores.mul_(scoring.scale)
    if bias is not None:
        scores = scores.add_(bias)
    if scoring.softcap is not None:
        scores = scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores.add_(mask)
    for more in (visible(scoring, queries, key), mask if mask is not None and mask.dtype == torch.bool else None):
        if more is not None:
            seen = more if seen is None else seen & more
    if seen is not None:
        scores = scores.masked_fill_(~seen, float("-inf"))
    made = scores.softmax(-1)
    # A row that sees nothing is zeros, not the NaN of 0 / 0. Without masks and biases every row sees something.
    if scoring.no_empty_rows or (seen is None and mask is None and bias is None):
        return made
    return made.masked_fill_((scores == float("-inf")).all(-1, keepdim=True), 0.0)


def visible(scoring: AttentionParams, queries: slice, key: Tensor) -> Tensor | None:
    """True where the queries may see a key by causality and window, `[queries, S]`; None where they see all."""
    if not scoring.causal:
        return None
    last = torch.arange(scoring.first + queries.start, scoring.first + queries.stop, device=key.device)[:, None]
    keys = torch.arange(key.shape[2], device=key.device)
    return keys <= last if scoring.window is None else (keys <= last) & (keys > last - scoring.window)


def _heads_of(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, index]


def capped_attention(query: Tensor, key: Tensor, value: Tensor, scoring: AttentionParams) -> Tensor:
    """The attention output `[B, H, T, D]` where torch's own fused attention has none: with a soft cap.

    Takes query `[B, H, T, D]`, key and value `[B, Hkv, S, D]`. A tile of queries at a time, on any device.
    """
    groups = query.shape[1] // value.shape[1]
    out = query.new_empty(*query.shape[:3], value.shape[3])
    for tile in tiles(query, key):
        made = probabilities(query, key, scoring, tile).to(value.dtype)
        batch, heads, length, keys = made.shape
        mixed = made.view(batch, heads // groups, groups * length, keys) @ value
        out[:, :, tile] = mixed.view(batch, heads, length, value.shape[3])
    return out
