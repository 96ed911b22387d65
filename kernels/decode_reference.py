"""`decode` in plain torch: the definition of right, and what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from .result import Part, Result
from .rows_reference import probabilities, write
from .scoring import Scoring

_ALL = slice(0, 1)


def decode_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: Scoring,
    result: Result,
    part: Part,
    lengths: Tensor | None = None,
) -> Tensor:
    """As `decode` has it, on what `decode` has checked."""
    if lengths is not None:
        scoring = _within(scoring, lengths, key)
    attention = probabilities(query, key, scoring, _ALL)
    chosen = attention if part.heads is None else attention[:, list(part.heads)]
    write(chosen, result, part, _ALL)
    batch, heads, _, keys = attention.shape
    # Query heads of a group share their value head without a copy of it.
    grouped = attention.view(batch, value.shape[1], heads // value.shape[1], keys).to(value.dtype)
    return (grouped @ value).view(batch, heads, 1, value.shape[3])


def _within(scoring: Scoring, lengths: Tensor, key: Tensor) -> Scoring:
    """The scoring with each slot's length, and the window before it, in its mask."""
    position = torch.arange(key.shape[2], device=key.device)
    end = lengths[:, None]
    seen = position < end
    if scoring.causal and scoring.window is not None:
        seen &= position >= end - scoring.window
    seen = seen[:, None, None, :]
    mask = scoring.mask
    if mask is None:
        mask = seen
    elif mask.dtype == torch.bool:
        mask = mask & seen
    else:
        mask = mask.float().masked_fill(~seen, float("-inf"))
    return scoring._replace(mask=mask, causal=False, window=None)
