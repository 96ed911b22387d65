"""Reductions in plain torch: of numbers that are all there, and of numbers that come in several batches.

A reduction in batches is `reduce_partial` of each batch, then `combine_partials`, then one `finish_reduction`: a mean
is a sum until it is divided, and an l2 norm is a sum of squares until its root is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reductions import Reduction


def reduce(numbers: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """Reduces one axis. Accumulates in float32 and returns float32, whatever the dtype of the numbers."""
    if reduction == "mean":
        return numbers.mean(dim, dtype=torch.float32)
    if reduction == "sum":
        return numbers.sum(dim, dtype=torch.float32)
    if reduction == "prod":
        return numbers.prod(dim, dtype=torch.float32)
    if reduction == "l2":
        return numbers.float().square().sum(dim).sqrt()  # on a CPU many times faster than torch.linalg.vector_norm
    if reduction == "max":
        return numbers.amax(dim).float()  # the result is one of the numbers: nothing accumulates
    if reduction == "min":
        return numbers.amin(dim).float()
    magnitude = numbers.abs().nan_to_num_(nan=0.0, posinf=torch.inf)
    # Of equal numbers max returns the first, as argmax does; argmax is up to ten times slower along strides on a CPU.
    return numbers.gather(dim, magnitude.max(dim, keepdim=True).indices).squeeze(dim).float()


def reduce_partial(numbers: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """Reduces one axis of one batch, float32, without finishing the reduction."""
    if reduction == "mean":
        return reduce(numbers, "sum", dim)
    if reduction == "l2":
        return numbers.float().square().sum(dim)
    return reduce(numbers, reduction, dim)


def combine_partials(before: Tensor, partial: Tensor, reduction: Reduction) -> Tensor:
    """Combines the partial results of the batches before with that of one more batch."""
    if reduction in ("mean", "sum", "l2"):
        return before + partial
    return reduce(torch.stack([before, partial]), reduction, 0)


def finish_reduction(value: Tensor, reduction: Reduction, divisor: float) -> Tensor:
    """Finishes a reduction, once all batches are in it. A mean is divided by `divisor`."""
    if reduction == "mean":
        return value / divisor
    return value.sqrt() if reduction == "l2" else value
