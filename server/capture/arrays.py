"""Attention on the host: plain arrays, as a message carries them, and their way there from the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors


class AttentionArrays(NamedTuple):
    """Attention of some queries, `[queries, positions, ...]`, or of one, `[positions, ...]`.

    `values` is float32, float16 or uint8. uint8 has `scales`, float32, without the axis of positions; with top-k there
    are `positions`, int32, in the shape of values, and their axis is shorter.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    positions: NDArray[np.int32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return sum(array.nbytes for array in self if array is not None)

    def of(self, query: int) -> AttentionArrays:
        """One of the queries."""
        return AttentionArrays(*(None if array is None else array[query] for array in self))  # pyright: ignore[reportArgumentType]

    def copy_of(self, query: int | slice, count: int | None = None) -> AttentionArrays:
        """One of the queries, or its first positions; or some queries. A copy keeps no other queries in memory.

        Rows are ordered by share under top-k, so that what a query cannot see, which has none, comes last.
        """
        where = query if isinstance(query, slice) else (query, slice(count))
        return AttentionArrays(
            self.values[where].copy(),
            None if self.scales is None else self.scales[query].copy(),
            None if self.positions is None else self.positions[where].copy(),
        )


def are_finite(numbers: AttentionArrays) -> bool:
    """Whether there is neither an infinity nor a NaN among the numbers, nor among their scales."""
    return all(_is_finite(array) for array in (numbers.values, numbers.scales) if array is not None)


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum has finite terms, and is made without a copy. Many great terms may have an infinite one.
        return bool(np.isfinite(array.sum(dtype=np.float32)) or np.isfinite(array).all())


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Tensors as arrays, by one copy from their device to the host, however many: the only wait in a step."""
    if not tensors:
        return []
    device = tensors[0].device
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    joined = join(tensors)
    host = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=True)
    host.copy_(joined, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return split(host.numpy(), tensors)


def join(tensors: Sequence[Tensor]) -> Tensor:
    """All bytes of some tensors, one after another, each from a multiple of 8 on, so that NumPy may look at them."""
    flat = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
    return torch.cat([torch.nn.functional.pad(each, (0, -len(each) % 8)) for each in flat])


def split(joined: NDArray[np.uint8], tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """What `join` joined, as arrays that share its memory."""
    arrays: list[NDArray[Any]] = []
    begin = 0
    for tensor in tensors:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
        arrays.append(joined[begin : begin + tensor.nbytes].view(dtype).reshape(tuple(tensor.shape)))
        begin += tensor.nbytes + -tensor.nbytes % 8
    return arrays


def tensors_of(result: AttentionTensors | None) -> list[Tensor]:
    """What is to be fetched of a result, batch of one."""
    if result is None:
        return []
    return [tensor[0] for tensor in (result.values, result.scales, result.positions) if tensor is not None]


def numbers_of(
    result: AttentionTensors | None, arrays: Sequence[NDArray[Any]], shape: tuple[int, ...]
) -> AttentionArrays | None:
    """The arrays of `tensors_of`, their columns as axes of `shape`."""
    if result is None:
        return None
    left = iter(arrays)

    def take(wanted: bool) -> NDArray[Any] | None:
        array = next(left) if wanted else None
        return None if array is None else array.reshape(*array.shape[:-1], *shape)

    values = take(True)
    assert values is not None
    return AttentionArrays(values, take(result.scales is not None), take(result.positions is not None))
