"""`layout` in plain torch: the definition of right, and what runs on a CPU.

Written for few operations as well, since a decoding step on a CPU runs it on a few hundred numbers: one stack of
permuted views is one pass over the input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .reductions import Reduction


def layout_reference(
    layers: Sequence[Tensor], over_heads: Reduction | None, over_layers: Reduction | None, out_dtype: torch.dtype
) -> Tensor:
    """As `layout` has it."""
    if over_heads is None:
        return torch.stack([layer.permute(0, 2, 3, 1) for layer in layers], dim=3).to(out_dtype)
    reduced = torch.stack([reduce(layer, over_heads, dim=1) for layer in layers], dim=3)
    if over_layers is not None:
        reduced = reduce(reduced, over_layers, dim=3)
    return reduced.to(out_dtype).contiguous()


def reduce(numbers: Tensor, reduction: Reduction, dim: int) -> Tensor:
    """Reduces one axis, in float32."""
    numbers = numbers.float()
    if reduction == "mean":
        return numbers.mean(dim)
    if reduction == "max":
        return numbers.amax(dim)
    if reduction == "min":
        return numbers.amin(dim)
    if reduction == "sum":
        return numbers.sum(dim)
    if reduction == "prod":
        return numbers.prod(dim)
    if reduction == "l2":
        return numbers.square().sum(dim).sqrt()
    place = numbers.nan_to_num().abs().argmax(dim, keepdim=True)
    return numbers.gather(dim, place).squeeze(dim)
