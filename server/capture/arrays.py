"""AttentionArrays: attention on the host, as a message carries it, and the way from the kernels' tensors to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...kernels import AttentionTensors


class AttentionArrays(NamedTuple):
    """Attention of several queries, `[queries, positions, ...]`, or of one query, `[positions, ...]`.

    `values` is float32, float16 or uint8. uint8 values have `scales`, float32, without the axis of positions. With
    top-k there are `positions`, int32, of the shape of `values`, and the axis of positions is shorter. Rows that leave
    out special tokens have `shares`, float32, without the axis of positions.
    """

    values: NDArray[Any]
    scales: NDArray[np.float32] | None = None
    positions: NDArray[np.int32] | None = None
    shares: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        if self.scales is None and self.positions is None and self.shares is None:
            return self.values.nbytes  # each step of each sequence comes by here
        return sum(array.nbytes for array in self if array is not None)

    def query(self, query: int | None) -> AttentionArrays:
        """Returns one query as a view."""
        return AttentionArrays(*(None if array is None else array[query] for array in self))  # pyright: ignore[reportArgumentType]

    def as_queries(self) -> AttentionArrays:
        """Returns the arrays of one query as those of several queries, of which there is one."""
        return self.query(None)

    def copy_query(self, query: int, num_positions: int | None = None) -> AttentionArrays:
        """Copies one query, or its first positions, so that the copy keeps no other query in memory.

        With top-k a row is sorted by share: the positions that the query cannot see have no share and come last.
        """
        return self._copy((query, slice(num_positions)), query)

    def copy_queries(self, queries: slice, num_positions: int | None = None) -> AttentionArrays:
        """Copies several queries, or their first positions, as `copy_query` does."""
        return self._copy((queries, slice(num_positions)), queries)

    def _copy(self, index: tuple[int | slice, slice], scale_index: slice | int) -> AttentionArrays:
        if self.scales is None and self.positions is None and self.shares is None:
            return AttentionArrays(self.values[index].copy())  # likewise
        return AttentionArrays(
            self.values[index].copy(),
            None if self.scales is None else self.scales[scale_index].copy(),
            None if self.positions is None else self.positions[index].copy(),
            None if self.shares is None else self.shares[scale_index].copy(),
        )

    def is_finite(self) -> bool:
        """Whether neither the values, the scales nor the shares hold an infinity or a NaN."""
        return all(_is_finite(array) for array in (self.values, self.scales, self.shares) if array is not None)


def _is_finite(array: NDArray[Any]) -> bool:
    if array.dtype.kind != "f":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        # If the sum is finite, so is each term, and a sum needs no copy. Many large terms may have an infinite sum.
        return bool(np.isfinite(array.sum(dtype=np.float32)) or np.isfinite(array).all())


def list_batch_tensors(tensors: AttentionTensors) -> list[Tensor]:
    """Lists the tensors that go to the host, `[B, T, ...]`."""
    present = (tensors.values, tensors.scales, tensors.positions, tensors.shares)
    return [tensor for tensor in present if tensor is not None]


def list_tensors(tensors: AttentionTensors | None) -> list[Tensor]:
    """Lists the tensors that go to the host, without the batch axis. The batch must be of one sequence."""
    if tensors is None:
        return []
    return [tensor[0] for tensor in list_batch_tensors(tensors)]


def build_arrays(
    tensors: AttentionTensors | None, arrays: Sequence[NDArray[Any]], shape: tuple[int, ...]
) -> AttentionArrays | None:
    """Builds AttentionArrays from the arrays on the host, in the order of `list_tensors`.

    The axis of columns becomes the axes of `shape`. None without tensors.
    """
    if tensors is None:
        return None
    remaining = iter(arrays)

    def next_array(is_present: bool) -> NDArray[Any] | None:
        array = next(remaining) if is_present else None
        return None if array is None else array.reshape(*array.shape[:-1], *shape)

    values = next_array(True)
    assert values is not None
    return AttentionArrays(
        values, *(next_array(tensor is not None) for tensor in (tensors.scales, tensors.positions, tensors.shares))
    )
