"""Numbers on their way to the device, without waiting for what it is doing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers on the device, behind what it has been told to do."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def int_tensor(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Tokens, rows, slots or places, on the device: int64, `[n]` or `[n, m]`."""
    return to_device(np.array(values, np.int64), device)


@lru_cache(maxsize=256)
def cached_index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """The numbers of some rows, on the device: int64 `[n]`. Steps ask for the same ones again and again: sent once."""
    return int_tensor(rows, device)
