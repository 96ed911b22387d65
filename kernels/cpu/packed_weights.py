"""Weights in panels: the memory layout in which CPU programs read a weight matrix.

A panel holds the weights of a fixed number of output features, as many as fit one tile of registers. Within a panel the
weights of one input feature stand side by side. For int8 the weights of four input features stand together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .support import is_supported


class PackedWeight(NamedTuple):
    """A weight `[out, in]` in panels, with the bias and, for int8, the scales that a matrix product applies."""

    in_features: int
    out_features: int
    panels: Tensor  # [panels, depth, width]; for int8 [panels, depth, width, 4]
    bias: Tensor  # float32, of all columns of all panels; zeros where the layer has no bias
    channel_scales: Tensor | None = None  # int8 only: the scale of each output feature, float32, padded as the bias
    corrections: Tensor | None = None  # int8 only: what the offset of the inputs adds to each sum, int32, padded alike


def pack_weight(weight: Tensor, channel_scales: Tensor | None = None, bias: Tensor | None = None) -> PackedWeight:
    """Packs a weight `[out, in]`: float32, or int8 with the scale `[out]` of each output feature.

    Raises:
        ValueError: The weight has another dtype.
        RuntimeError: This machine does not run such programs.
    """
    is_int8 = channel_scales is not None
    if weight.dtype != (torch.int8 if is_int8 else torch.float32):
        raise ValueError(f"weight: must be float32, or int8 with channel_scales, not {weight.dtype}")
    if not is_supported(int8=is_int8):
        raise RuntimeError("this machine does not run CPU programs")
    from .jit.isa import PANEL_WIDTH

    out_features, in_features = weight.shape
    group = 4 if is_int8 else 1  # input features that stand together
    depth, num_panels = -(-in_features // group), -(-out_features // PANEL_WIDTH)
    padded = weight.new_zeros(num_panels * PANEL_WIDTH, depth * group)
    padded[:out_features, :in_features] = weight
    panels = padded.view(num_panels, PANEL_WIDTH, depth, group).permute(0, 2, 1, 3).contiguous()

    def pad_columns(values: Tensor | None, dtype: torch.dtype) -> Tensor:
        columns = torch.zeros(num_panels * PANEL_WIDTH, dtype=dtype)
        if values is not None:
            columns[:out_features] = values
        return columns

    padded_bias = pad_columns(bias, torch.float32)
    if channel_scales is None:
        return PackedWeight(in_features, out_features, panels, padded_bias)
    # Quantized inputs are stored with an offset of 128.
    corrections = pad_columns(weight.sum(1, dtype=torch.int32).mul_(128), torch.int32)
    return PackedWeight(
        in_features, out_features, panels, padded_bias, pad_columns(channel_scales, torch.float32), corrections
    )
