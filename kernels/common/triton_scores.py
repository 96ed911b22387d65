"""Tiles of scores in Triton, shared by `rows` and `decode`: what `AttentionParams` says, on a tile in registers.

Kernels take what belongs together as one named tuple; None in it is known when compiling, and costs nothing.

A softmax's denominator is two numbers side by side: the greatest score of the row, and 1 / the sum of exp(score -
greatest); both are 0 where nothing is seen. They are kept apart, as one logarithm of both would be rounded at the size
of the scores: rows with large ones would not add up to 1.
"""
# Triton's language is untyped: what the kernel's body does is checked by tests, not by pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportUnnecessaryComparison=false

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_params import AttentionParams


class Strided(NamedTuple):
    """A tensor of four axes as a kernel sees it: `[B, H, T, D]`, or with S for D."""

    address: Tensor
    b: int
    h: int
    t: int
    d: int


class Rule(NamedTuple):
    """`AttentionParams` as a kernel sees it. None: there is no such thing."""

    scale: float
    softcap: float | None
    bias: Strided | None
    mask: Strided | None  # bytes (not 0: may see) or additive
    first: int | None  # None: not causal
    window: int | None


def strided(tensor: Tensor) -> Strided:
    """Strides, 0 for an axis of size 1: it has one for all, or walks nowhere."""
    b, h, t, d = (0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return Strided(tensor, b, h, t, 1 if tensor.shape[3] == 1 else d)


def rule_of(scoring: AttentionParams) -> Rule:
    """What a kernel is told of a scoring."""
    mask = scoring.mask
    if mask is not None and mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    return Rule(
        float(scoring.scale),
        scoring.softcap if scoring.softcap is None else float(scoring.softcap),
        None if scoring.bias is None else strided(scoring.bias),
        None if mask is None else strided(mask),
        scoring.first if scoring.causal else None,
        scoring.window,
    )


def precision(dtype: torch.dtype) -> str:
    """How matrix products are made: float32 as three of tf32, exact to about 2^-21, where tensor cores know no better.

    AMD's multiply float32 as it is. Halves have no choice to make.
    """
    try:
        driver: Any = triton.runtime.driver.active
        backend = driver.get_current_target().backend
    except RuntimeError:  # no GPU: the interpreter, which multiplies as NumPy does
        return "ieee"
    return "tf32x3" if dtype == torch.float32 and backend == "cuda" else "ieee"


@triton.jit
def tanh(x):
    """The hyperbolic tangent, in the language itself, since the interpreter has no libdevice."""
    square = x * x
    # Taylor's series to x^9: below 1/4 the next term is a hundred-millionth of the sum.
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    power = tl.exp(-2 * tl.abs(x))  # not above 1, so nothing overflows
    size = (1 - power) / (1 + power)
    return tl.where(tl.abs(x) < 0.25, series, tl.where(x < 0, -size, size))


@triton.jit
def scored(rule, scores, b, h, t, k, inside):
    """Scores as the softmax takes them, float32 `[rows, keys]`: -inf where a query may not see a key.

    Of batch b; h, t and k are heads, queries and keys, each `[rows, 1]` or `[1, keys]` or a number; `inside` is whether
    there is such a query and such a key at all.
    """
    scores = scores * rule.scale
    if rule.bias is not None:
        bias = rule.bias.address + b * rule.bias.b + h * rule.bias.h + t * rule.bias.t + k * rule.bias.d
        scores += tl.load(bias, mask=inside, other=0.0).to(tl.float32)
    if rule.softcap is not None:
        scores = rule.softcap * tanh(scores / rule.softcap)
    if rule.first is not None:
        inside = inside & (k <= rule.first + t)
        if rule.window is not None:
            inside = inside & (k > rule.first + t - rule.window)
    if rule.mask is not None:
        mask = rule.mask.address + b * rule.mask.b + h * rule.mask.h + t * rule.mask.t + k * rule.mask.d
        if rule.mask.address.dtype.element_ty == tl.uint8:
            inside = inside & (tl.load(mask, mask=inside, other=0) != 0)
        else:
            scores += tl.load(mask, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, scores, float("-inf"))


@triton.jit
def finite(greatest):
    """The greatest score, or 0 where nothing is seen: exp(-inf - 0) is 0, not NaN."""
    return tl.where(greatest == float("-inf"), 0.0, greatest)


@triton.jit
def inverse(total):
    """1 / total, or 0 where nothing is seen."""
    return tl.where(total == 0.0, 0.0, 1.0 / total)
