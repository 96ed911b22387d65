"""One step of attention over slots on a CPU, apart from any program: of each row as if it were alone, to the bit.

What torch makes of a batch depends on how far the longest of it is, and on where in memory each of them stands. This is
the attention of programs, one operation by itself, with what other families than theirs have: keys that heads share,
biases, caps and windows. Needs what programs need.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..common.attention_params import AttentionParams
from .jit import opcodes as op
from .program import bits_of, run_table


def attend_apart(
    query: Tensor, key: Tensor, value: Tensor, scoring: AttentionParams, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention output `[B, H, 1, D]` of one query for each slot, and the probabilities, float32 `[B, H, 1, S]`.

    Takes query `[B, H, 1, D]`, key and value `[B, Hkv, S, D]`, values of any width, all float32. A row sees its first
    keys, as many as `lengths` says, int64 `[B]`, 1 to S each, whatever the others are. Of these, a bool mask may hide
    some at the beginning: what it says of others is not looked at.
    """
    batch, heads, _, width = query.shape
    query = query.transpose(1, 2).reshape(batch, heads * width)
    key, value = (each if each.stride(3) == 1 else each.contiguous() for each in (key, value))
    out = query.new_empty(batch, heads, 1, value.shape[3])
    shares = query.new_empty(batch, heads, 1, key.shape[2])
    fields = np.zeros((1, op.FIELDS), np.int64)
    made = fields[0]
    made[op.KIND], made[op.SIZE] = op.ATTEND, width
    made[op.X], made[op.X_STRIDE] = query.data_ptr(), 4 * query.stride(0)
    made[op.OUT], made[op.OUT_STRIDE] = out.data_ptr(), 4 * out.stride(0)
    for tensor, first in ((key, op.KEYS), (value, op.VALUES)):
        made[first : first + 4] = tensor.data_ptr(), *(4 * stride for stride in tensor.stride()[:3])
    made[op.HEADS], made[op.GROUP], made[op.VALUE_WIDTH] = heads, heads // key.shape[1], value.shape[3]
    made[op.LENGTHS], made[op.SCALE] = lengths.data_ptr(), bits_of(scoring.scale)
    made[op.SHARES], made[op.SHARES_STRIDE], made[op.SHARES_HEAD] = (
        shares.data_ptr(),
        *(4 * stride for stride in shares.stride()[:2]),
    )
    begins: Tensor | None = None
    if scoring.mask is not None:
        # Of equal numbers, argmax gives the first.
        begins = scoring.mask[:, 0, 0].byte().argmax(-1).expand(batch).contiguous()
        made[op.BEGINS] = begins.data_ptr()
    bias = scoring.bias
    if bias is not None:
        bias = bias.float().expand(batch, heads, 1, key.shape[2])
        bias = bias if bias.stride(3) == 1 else bias.contiguous()
        made[op.SCORE_BIAS] = bias.data_ptr()
        made[op.SCORE_BIAS_STRIDE], made[op.SCORE_BIAS_HEAD] = (4 * stride for stride in bias.stride()[:2])
    if scoring.softcap is not None:
        made[op.CAP] = bits_of(scoring.softcap)
    run_table(fields, batch, shown_source=key.shape[2])
    return out, shares
