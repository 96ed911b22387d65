"""Transfer between host and device, without waiting for the device more than once a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Sends an array to the device, in the queue behind the device's present work. Does not wait."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def host_array(tensor: Tensor) -> Any:
    """Returns the numbers of a tensor: on a CPU as an array of NumPy in the same memory, elsewhere as the tensor."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def writable(tensor: Tensor) -> Any:
    """A tensor whose numbers are set to zero, or copied from index to index: on a CPU its bytes as an array of NumPy.

    NumPy takes a tenth of the time of torch, and does not release Python's lock, which other threads keep for a while.
    """
    if tensor.device.type != "cpu":
        return tensor
    return tensor.view(torch.uint8).numpy()


def int_tensor(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Sends tokens, rows, slots or positions to the device: int64, `[n]` or `[n, m]`."""
    return to_device(np.array(values, np.int64), device)


@lru_cache(maxsize=256)
def cached_index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Sends row numbers to the device: int64 `[n]`. Steps use the same rows again and again, which are sent once."""
    return int_tensor(rows, device)


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Copies tensors to the host as arrays, all in one copy: the only wait of a step."""
    if not tensors:
        return []
    device = tensors[0].device
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    packed = pack_bytes(tensors)
    host = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return unpack_bytes(host.numpy(), tensors)


def pack_bytes(tensors: Sequence[Tensor]) -> Tensor:
    """Packs the bytes of tensors one after another, uint8 `[n]`.

    Each tensor starts at a multiple of 8 bytes, so that NumPy can view the bytes in the tensor's type.
    """
    flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % 8)) for part in flat])


def unpack_bytes(packed: NDArray[np.uint8], tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Views the bytes that `pack_bytes` packed as arrays, of the types and shapes of `tensors`."""
    arrays: list[NDArray[Any]] = []
    begin = 0
    for tensor in tensors:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        arrays.append(packed[begin : begin + tensor.nbytes].view(dtype).reshape(tuple(tensor.shape)))
        begin += tensor.nbytes + -tensor.nbytes % 8
    return arrays
