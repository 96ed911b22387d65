"""Encoding of rows in plain torch: the greatest positions of each row, and bytes with a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_BYTE = 255


class PackedRows(NamedTuple):
    """Encoded rows: the fields of `AttentionTensors` with the same names."""

    values: Tensor
    scales: Tensor | None
    positions: Tensor | None


def pack(rows: Tensor, dtype: torch.dtype, top_k: int) -> PackedRows:
    """Encodes float32 rows `[B, T, S, C]`.

    A byte is floor(number / scale + 1/2), and the scale of a row is its greatest number / 255: the error is at most
    half a scale. Of equal numbers top-k takes those at the lowest positions, in this order.
    """
    positions = None
    if top_k:
        # sort with stable=True: torch.topk promises no order among equal numbers
        ordered, index = rows.sort(dim=2, descending=True, stable=True)
        rows, positions = ordered[:, :, :top_k], index[:, :, :top_k].to(torch.int32)
    if dtype != torch.uint8:
        return PackedRows(rows.to(dtype), None, positions)
    scales = rows.amax(2) / _MAX_BYTE
    steps = torch.where(scales > 0, scales, 1.0).unsqueeze(2)
    return PackedRows((rows / steps + 0.5).floor_().clamp_(0, _MAX_BYTE).to(torch.uint8), scales, positions)
