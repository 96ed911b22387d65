"""`decode` in plain torch: the definition of right, and what runs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.attention_params import AttentionParams
from ..common.attention_reference import causal_mask, probabilities
from ..common.attention_tensors import AttentionTensors, LayerSpec
from ..common.key_weighting import KeyWeighting
from ..common.write_reference import write_probabilities

_QUERY = slice(0, 1)


def decode_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: AttentionParams,
    out: AttentionTensors,
    spec: LayerSpec,
    weighting: KeyWeighting,
) -> Tensor:
    """Does what `decode` does, with arguments that `decode` has checked."""
    visible = causal_mask(params, _QUERY, key)
    if visible is not None:
        value = value.masked_fill(~visible.mT, 0.0)  # hidden values may be NaN, and 0 * NaN would be NaN
    output, attention = attend_to(query, key, value, params)
    write_probabilities(attention, out, spec, _QUERY, weighting)
    return output


def attend_to(query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> tuple[Tensor, Tensor]:
    """Attends with one query for each slot.

    Takes query `[B, H, 1, D]`, key and value `[B, Hkv, S, D]`, values of any width. Returns the attention output
    `[B, H, 1, D]`, and the probabilities, float32 `[B, H, 1, S]`.
    """
    attention = probabilities(query, key, params, _QUERY)
    batch, heads, _, keys = attention.shape
    # Query heads of a group share their value head without a copy of it.
    grouped = attention.view(batch * value.shape[1], heads // value.shape[1], keys).to(value.dtype)
    return torch.bmm(grouped, value.flatten(0, 1)).view(batch, heads, 1, value.shape[3]), attention
