"""Tiles of attention scores in Triton, for `rows` and `decode`: what `AttentionParams` means for a tile in registers.

Kernels take parameters that belong together as one named tuple. None in a tuple is known at compile time and costs
nothing.

A softmax denominator is two numbers side by side: the greatest score of the row, and 1 / the sum of exp(score -
greatest); both are 0 where a query sees no key. They are kept apart: one logarithm of both would be rounded in
proportion to the scores, and rows with large scores would not sum to 1.
"""
# Triton's language is untyped: tests check the kernels' bodies.
# pyright: basic, reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_params import AttentionParams


class StridedTensor(NamedTuple):
    """A tensor of four axes as a kernel sees it: `[B, H, T, D]`, or with S instead of T or D."""

    address: Tensor
    b: int
    h: int
    t: int
    d: int


class KernelParams(NamedTuple):
    """`AttentionParams` as a kernel sees them. None: there is no such thing.

    Kernels name it `score_params`: Triton's launcher overwrites an argument named `params`.
    """

    scale: float
    softcap: float | None
    bias: StridedTensor | None
    mask: StridedTensor | None  # bytes (not 0: may see) or additive
    first_position: int | None  # None: not causal


def to_strided(tensor: Tensor) -> StridedTensor:
    """Returns a tensor with its strides, 0 for an axis of size 1: such an axis is broadcast, or never walked."""
    b, h, t, d = (0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return StridedTensor(tensor, b, h, t, 1 if tensor.shape[3] == 1 else d)


def to_kernel_params(params: AttentionParams) -> KernelParams:
    """Returns the parameters for a kernel."""
    mask = params.mask
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return KernelParams(
        float(params.scale),
        params.softcap if params.softcap is None else float(params.softcap),
        None if params.bias is None else to_strided(params.bias),
        None if mask is None else to_strided(mask),
        params.first_position if params.causal else None,
    )


def dot_precision(dtype: torch.dtype) -> str:
    """Returns the input precision of matrix products: three products of tf32 for float32, exact to about 2^-21.

    NVIDIA's tensor cores have nothing better for float32. AMD's multiply float32 itself. Halves leave no choice.
    """
    try:
        driver: Any = triton.runtime.driver.active
        backend = driver.get_current_target().backend
    except RuntimeError:  # no GPU: the interpreter, which multiplies as NumPy does
        return "ieee"
    return "tf32x3" if dtype == torch.float32 and backend == "cuda" else "ieee"


@triton.jit
def tanh(x):
    """The hyperbolic tangent, in Triton itself: the interpreter has no libdevice."""
    square = x * x
    # Taylor's series to x^9: below 1/4 the next term is a hundred-millionth of the sum.
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    power = tl.exp(-2 * tl.abs(x))  # not above 1, so nothing overflows
    size = (1 - power) / (1 + power)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -size, size))


@triton.jit
def masked_scores(score_params, scores, b, h, t, k, inside):
    """Turns dot products into the scores of a softmax, float32 `[rows, keys]`: -inf where a query may not see a key.

    The batch row is b; h, t and k are heads, queries and keys, each `[rows, 1]` or `[1, keys]` or a number. `inside` is
    true where there is such a query and such a key.
    """
    scores = scores * score_params.scale
    if score_params.bias is not None:
        bias = (
            score_params.bias.address
            + b * score_params.bias.b
            + h * score_params.bias.h
            + t * score_params.bias.t
            + k * score_params.bias.d
        )
        scores += tl.load(bias, mask=inside, other=0.0).to(tl.float32)
    if score_params.softcap is not None:
        scores = score_params.softcap * tanh(scores / score_params.softcap)
    if score_params.first_position is not None:
        inside = inside & (k <= score_params.first_position + t)
    if score_params.mask is not None:
        mask = (
            score_params.mask.address
            + b * score_params.mask.b
            + h * score_params.mask.h
            + t * score_params.mask.t
            + k * score_params.mask.d
        )
        if score_params.mask.address.dtype.element_ty == tl.uint8:
            inside = inside & (tl.load(mask, mask=inside, other=0) != 0)
        else:
            scores += tl.load(mask, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, scores, float("-inf"))


@triton.jit
def finite_max(row_max):
    """The greatest score of rows, or 0 where a query sees no key: exp(-inf - 0) is 0, not NaN."""
    return tl.where(row_max == float("-inf"), 0.0, row_max)


@triton.jit
def inverse_sum(exp_sum):
    """1 / the sum of exponentials of rows, or 0 where a query sees no key."""
    return tl.where(exp_sum == 0.0, 0.0, 1.0 / exp_sum)
