"""Copies of numbers from the host to the device that do not wait for the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device, in the order of the device's other work."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def int_tensor(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Token ids, rows, slots or positions on the device: int64 `[n]` or `[n, m]`."""
    return to_device(np.array(values, np.int64), device)


@lru_cache(maxsize=256)
def cached_index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Indices of rows on the device: int64 `[n]`. Copied once, since steps ask for the same rows again and again."""
    return int_tensor(rows, device)
