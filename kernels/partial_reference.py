"""Reductions that are not finished yet, in plain torch: numbers that come in several lots become one.

A reduction is `partial` of each lot, `combine`d, and `finish`ed once: a mean is a sum until it is divided, an l2 norm a
sum of squares until its root is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout_reference import reduce
from .reductions import Reduction


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
