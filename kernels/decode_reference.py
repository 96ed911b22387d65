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
    seen = None
    if lengths is not None:
        seen = _seen(lengths, scoring, key)
        value = value.masked_fill(~seen.transpose(2, 3), 0.0)  # what no slot sees may be NaN, and 0 * NaN would be, too
        scoring = scoring._replace(causal=False, window=None)
    attention = probabilities(query, key, scoring, _ALL, None, seen)
    chosen = attention if part.heads is None else attention[:, list(part.heads)]
    write(chosen, result, part, _ALL)
    batch, heads, _, keys = attention.shape
    # Query heads of a group share their value head without a copy of it.
    grouped = attention.view(batch, value.shape[1], heads // value.shape[1], keys).to(value.dtype)
    return (grouped @ value).view(batch, heads, 1, value.shape[3])


def _seen(lengths: Tensor, scoring: Scoring, key: Tensor) -> Tensor:
    """True where a slot sees a key by its length and the window before its end, `[B, 1, 1, S]`."""
    position = torch.arange(key.shape[2], device=key.device)
    end = lengths.clamp(max=key.shape[2])[:, None]
    seen = position < end
    if scoring.causal and scoring.window is not None:
        seen &= position >= end - scoring.window
    return seen[:, None, None, :]
