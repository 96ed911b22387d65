"""`layout` in Triton.

One kernel permutes, or reduces one axis while it permutes; it is launched once for each layer, each launch writing its
own part of the result, so that no layer is copied to stand beside the others. Layers are reduced by the same kernel, in
one more launch over the float32 sums of the first ones, where the layers take the place of the heads.

Bytes moved: every probability is read once and every number of the result written once, which is the least possible.
Reducing layers as well writes and reads `4 * B * L * Q * K` bytes between the launches, a fraction 2 / H of the input's
elements.

Loads run along K, where the input is contiguous; stores run along H, where the result is. The tile is turned round in
between, in registers and shared memory, by the compiler.
"""
# Triton's language is untyped: what the kernel body does is checked by tests, not by pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reductions import Reduction

_MAX_BLOCK_P = 256  # positions in a tile, when there are enough
_TILE = 2048  # numbers in a tile: 16 for each thread of the four warps


@triton.jit
def layout_kernel(
    x,  # [B, H, Q, K], any strides
    out,  # [B, Q * K, H], or [B, Q * K] when H is reduced, any strides
    positions,  # Q * K
    keys,  # K
    heads,  # H
    x_stride_b,
    x_stride_h,
    x_stride_q,
    x_stride_k,
    out_stride_b,
    out_stride_p,
    REDUCTION: tl.constexpr,  # "" to permute only
    BLOCK_P: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Writes one tile of positions of one batch row."""
    # 64-bit offsets: a batch of long prompts passes 2^31 numbers.
    batch = tl.program_id(1).to(tl.int64)
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = position < positions
    x += batch * x_stride_b + (position // keys) * x_stride_q + (position % keys) * x_stride_k
    out += batch * out_stride_b + position * out_stride_p

    if REDUCTION == "":
        for first in range(0, heads, BLOCK_H):
            head = first + tl.arange(0, BLOCK_H).to(tl.int64)
            tile_inside = inside[None, :] & (head < heads)[:, None]
            tile = tl.load(x[None, :] + head[:, None] * x_stride_h, mask=tile_inside)  # [H, P]
            tl.store(out[:, None] + head[None, :], tl.trans(tile), mask=tl.trans(tile_inside))
        return

    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if REDUCTION == "l2":
        value = value * value
    size = tl.where(value == value, tl.abs(value), 0.0)  # for absmax: NaN counts as 0
    for _ in range(1, heads):
        x += x_stride_h
        head_value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
        if REDUCTION == "mean" or REDUCTION == "sum":
            value += head_value
        elif REDUCTION == "l2":
            value += head_value * head_value
        elif REDUCTION == "prod":
            value *= head_value
        elif REDUCTION == "max":
            value = tl.maximum(value, head_value, propagate_nan=tl.PropagateNan.ALL)
        elif REDUCTION == "min":
            value = tl.minimum(value, head_value, propagate_nan=tl.PropagateNan.ALL)
        elif REDUCTION == "absmax":
            head_size = tl.where(head_value == head_value, tl.abs(head_value), 0.0)
            value = tl.where(head_size > size, head_value, value)
            size = tl.maximum(size, head_size)
    if REDUCTION == "mean":
        value = value / heads
    elif REDUCTION == "l2":
        value = tl.sqrt_rn(value)
    tl.store(out, value, mask=inside)


def layout_triton(
    layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None, out_dtype: torch.dtype
) -> Tensor:
    """As `layout` has it."""
    batch, heads, queries, keys = layers[0].shape
    count = len(layers)
    device = layers[0].device
    if over_heads is None:
        out = torch.empty(batch, queries, keys, count, heads, dtype=out_dtype, device=device)
        for index, layer in enumerate(layers):
            _launch(layer, out.flatten(1, 2)[:, :, index], None)
        return out
    if over_layers is None:
        out = torch.empty(batch, queries, keys, count, dtype=out_dtype, device=device)
        for index, layer in enumerate(layers):
            _launch(layer, out.flatten(1, 2)[:, :, index], over_heads)
        return out
    reduced = torch.empty(batch, count, queries, keys, dtype=torch.float32, device=device)
    for index, layer in enumerate(layers):
        _launch(layer, reduced[:, index].flatten(1, 2), over_heads)
    out = torch.empty(batch, queries, keys, dtype=out_dtype, device=device)
    _launch(reduced, out.flatten(1, 2), over_layers)
    return out


def _launch(x: Tensor, out: Tensor, reduction: Reduction | None) -> None:
    """Runs the kernel from `x` `[B, H, Q, K]` into `out` `[B, Q * K, H]`, or `[B, Q * K]` for a reduction."""
    batch, heads, queries, keys = x.shape
    assert out.shape == ((batch, queries * keys, heads) if reduction is None else (batch, queries * keys))
    assert reduction is not None or out.stride(2) == 1 or heads == 1
    assert out.device == x.device
    block_h = 1 if reduction else min(16, triton.next_power_of_2(heads))
    block_p = max(16, min(_MAX_BLOCK_P, _TILE // block_h, triton.next_power_of_2(queries * keys)))
    if queries > 1 and x.stride(2) == keys * x.stride(3):
        # Rows that follow one another in memory are one long row: no division is needed, and loads stay wide
        # whatever K is.
        keys = queries * keys
    grid = (triton.cdiv(queries * x.shape[3], block_p), batch)
    layout_kernel[grid](
        x,
        out,
        queries * x.shape[3],
        keys,
        heads,
        *x.stride(),
        out.stride(0),
        out.stride(1),
        REDUCTION=reduction or "",
        BLOCK_P=block_p,
        BLOCK_H=block_h,
    )
