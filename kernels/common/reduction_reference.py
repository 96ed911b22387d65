"""Reductions in plain torch: of numbers that are all there, and of numbers that come in several lots.

A reduction in lots is `partial` of each lot, `combine`d, and `finish`ed once: a mean is a sum until it is divided, and
an l2 norm a sum of squares until its root is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reductions import Reduction


def reduce(numbers: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """Reduces one axis; float32 comes out, and is what accumulates, whatever goes in."""
    if reduction == "mean":
        return numbers.mean(dim, dtype=torch.float32)
    if reduction == "sum":
        return numbers.sum(dim, dtype=torch.float32)
    if reduction == "prod":
        return numbers.prod(dim, dtype=torch.float32)
    if reduction == "l2":
        return numbers.float().square().sum(dim).sqrt()  # on a CPU many times faster than torch.linalg.vector_norm
    if reduction == "max":
        return numbers.amax(dim).float()  # one of the numbers comes out: nothing to accumulate
    if reduction == "min":
        return numbers.amin(dim).float()
    size = numbers.abs().nan_to_num_(nan=0.0, posinf=torch.inf)
    # Of equals, max gives the first one, as argmax does, which is up to ten times slower along strides on a CPU.
    return numbers.gather(dim, size.max(dim, keepdim=True).indices).squeeze(dim).float()


def partial(numbers: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """One lot, float32: the axis reduced, but not finished."""
    if reduction == "mean":
        return reduce(numbers, "sum", dim)
    if reduction == "l2":
        return numbers.float().square().sum(dim)
    return reduce(numbers, reduction, dim)


def combine(before: Tensor, lot: Tensor, reduction: Reduction) -> Tensor:
    """What two lots are together."""
    if reduction in ("mean", "sum", "l2"):
        return before + lot
    return reduce(torch.stack([before, lot]), reduction, 0)


def finish(value: Tensor, reduction: Reduction, count: float) -> Tensor:
    """What is left to do once all lots are in."""
    if reduction == "mean":
        return value / count
    return value.sqrt() if reduction == "l2" else value
