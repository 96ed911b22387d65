"""One attention step over slots on a CPU, outside of any program: each row as if it were alone, to the bit.

What torch computes for a row of a batch depends on the length of the longest row, and on where in memory each row
stands. This module runs the attention of programs as one operation, with what model families outside of programs have:
grouped key heads, biases, soft caps and windows. It needs what programs need.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..common.attention_params import AttentionParams
from .jit import opcodes as op
from .operations import float_bits, run_operations, set_keys_and_values


def attend_slots(
    query: Tensor, key: Tensor, value: Tensor, params: AttentionParams, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Attends with one query for each slot, each slot over its first keys alone.

    Args:
        query: float32 `[B, H, 1, D]`.
        key: float32 `[B, Hkv, S, D]`.
        value: float32 `[B, Hkv, S, V]`.
        params: A bool mask may hide the first keys of a slot. What the mask says of other keys is ignored.
        lengths: int64 `[B]`: how many keys each slot sees, 1 to S.

    Returns:
        The attention output `[B, H, 1, V]`, and the probabilities, float32 `[B, H, 1, S]`.
    """
    batch, heads, _, width = query.shape
    query = query.transpose(1, 2).reshape(batch, heads * width)
    key, value = (tensor if tensor.stride(3) == 1 else tensor.contiguous() for tensor in (key, value))
    out, probabilities = torch.empty(batch, heads, 1, value.shape[3]), torch.empty(batch, heads, 1, key.shape[2])
    table = np.zeros((1, op.NUM_FIELDS), np.int64)
    fields = table[0]
    fields[op.KIND], fields[op.SIZE] = op.ATTEND, width
    fields[op.X], fields[op.X_STRIDE] = query.data_ptr(), 4 * query.stride(0)
    fields[op.OUT], fields[op.OUT_STRIDE] = out.data_ptr(), 4 * out.stride(0)
    set_keys_and_values(fields, key, value)
    fields[op.HEADS], fields[op.GROUP_SIZE] = heads, heads // key.shape[1]
    fields[op.LENGTHS], fields[op.SCALE] = lengths.data_ptr(), float_bits(params.scale)
    fields[op.PROBABILITIES] = probabilities.data_ptr()
    fields[op.PROBABILITIES_STRIDE], fields[op.PROBABILITIES_HEAD] = (
        4 * stride for stride in probabilities.stride()[:2]
    )
    first_keys: Tensor | None = None
    if params.mask is not None:
        # Of equal numbers, argmax returns the first.
        first_keys = params.mask[:, 0, 0].byte().argmax(-1).expand(batch).contiguous()
        fields[op.FIRST_KEYS] = first_keys.data_ptr()
    bias = params.bias
    if bias is not None:
        bias = bias.float().expand(batch, heads, 1, key.shape[2])
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
        fields[op.SCORE_BIAS] = bias.data_ptr()
        fields[op.SCORE_BIAS_STRIDE], fields[op.SCORE_BIAS_HEAD] = (4 * stride for stride in bias.stride()[:2])
    if params.softcap is not None:
        fields[op.SOFTCAP] = float_bits(params.softcap)
    run_operations(table, batch, num_cross_positions=key.shape[2])
    return out, probabilities
