"""How rows are packed, in plain torch: the greatest positions of each, one byte a number."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEVELS = 255  # what a byte can count


class Packed(NamedTuple):
    """Rows of `[B, T, S, C]`, packed as `AttentionTensors` has it."""

    values: Tensor
    scales: Tensor | None
    positions: Tensor | None


def pack(rows: Tensor, dtype: torch.dtype, top_k: int) -> Packed:
    """Packs float32 rows `[B, T, S, C]`.

    A byte is floor(number / scale + 1/2), a row's scale its greatest number / 255: an error of at most half a scale.
    Of equal numbers top-k takes those at the lowest positions, and gives them in that order.
    """
    positions = None
    if top_k:
        # stable: torch's own topk promises no order among equals
        ordered, places = rows.sort(dim=2, descending=True, stable=True)
        rows, positions = ordered[:, :, :top_k], places[:, :, :top_k].to(torch.int32)
    if dtype != torch.uint8:
        return Packed(rows.to(dtype), None, positions)
    scales = rows.amax(2) / _LEVELS
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(2)
    return Packed((rows / steps + 0.5).floor_().clamp_(0, _LEVELS).to(torch.uint8), scales, positions)
