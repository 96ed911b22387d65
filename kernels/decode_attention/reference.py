"""`decode` in plain torch: the definition of right, and what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.attention_params import AttentionParams
from ..common.attention_reference import probabilities, visible
from ..common.attention_tensors import AttentionTensors, LayerSpec
from ..common.write_reference import write_heads

_ALL = slice(0, 1)


def decode_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scoring: AttentionParams,
    result: AttentionTensors,
    part: LayerSpec,
    lengths: Tensor | None = None,
) -> Tensor:
    """As `decode` has it, on what `decode` has checked."""
    seen = visible(scoring, _ALL, key) if lengths is None else _seen(lengths, scoring, key)
    if seen is not None:
        value = value.masked_fill(~seen.mT, 0.0)  # what a slot does not see may be NaN, and 0 * NaN would be, too
        scoring = scoring._replace(causal=False, window=None)
    output, attention = attend_to(query, key, value, scoring, seen)
    write_heads(attention, result, part, _ALL)
    return output


def attend_to(
    query: Tensor, key: Tensor, value: Tensor, scoring: AttentionParams, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The attention output `[B, H, 1, D]` of one query for each slot, and the probabilities: float32 `[B, H, 1, S]`.

    Takes query `[B, H, 1, D]`, key and value `[B, Hkv, S, D]`, values of any width; `seen` as `probabilities` does.
    """
    attention = probabilities(query, key, scoring, _ALL, None, seen)
    batch, heads, _, keys = attention.shape
    # Query heads of a group share their value head without a copy of it.
    grouped = attention.view(batch * value.shape[1], heads // value.shape[1], keys).to(value.dtype)
    return torch.bmm(grouped, value.flatten(0, 1)).view(batch, heads, 1, value.shape[3]), attention


def _seen(lengths: Tensor, scoring: AttentionParams, key: Tensor) -> Tensor:
    """True where a slot sees a key by its length and the window before its end, `[B, 1, 1, S]`."""
    position = torch.arange(key.shape[2], device=key.device)
    end = lengths.clamp(max=key.shape[2])[:, None]
    seen = position < end
    if scoring.causal and scoring.window is not None:
        seen &= position >= end - scoring.window
    return seen[:, None, None, :]
