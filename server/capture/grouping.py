"""Arithmetic of units on the host: rows reduced over the positions and over the steps of a unit, then encoded.

This module knows arrays. It does not know what a token is, or which positions belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels import ENCODINGS, Encoding, Reduction, pack
from .arrays import AttentionArrays

FloatArray = NDArray[np.float32]


def reduce_groups(values: FloatArray, begins: Sequence[int], reduction: Reduction, axis: int = 0) -> FloatArray:
    """Reduces one axis of an array: the indices of each group become one index. Returns float32.

    Args:
        values: The numbers.
        begins: Where each group begins, from 0, ascending. A group ends where the next group begins.
        reduction: How the numbers of a group become one: see `kernels.Reduction`.
        axis: The axis.
    """
    length = values.shape[axis]
    if len(begins) == length:  # groups of one index
        return np.abs(values) if reduction == "l2" else values
    if reduction == "max":
        return np.maximum.reduceat(values, begins, axis)
    if reduction == "min":
        return np.minimum.reduceat(values, begins, axis)
    if reduction == "prod":
        return np.multiply.reduceat(values, begins, axis)
    if reduction == "l2":
        return np.sqrt(np.add.reduceat(np.square(values), begins, axis))
    if reduction == "absmax":
        groups = np.split(values, begins[1:], axis)
        return np.concatenate([_take_greatest(group, axis) for group in groups], axis)
    sums = np.add.reduceat(values, begins, axis)
    if reduction == "sum":
        return sums
    counts = np.diff(np.asarray([*begins, length])).astype(np.float32)
    means: Any = sums / counts.reshape(-1, *[1] * (values.ndim - axis - 1))
    return means


def _take_greatest(values: FloatArray, axis: int) -> FloatArray:
    """Returns the numbers with the greatest absolute value, with their signs; the axis stays, with one index."""
    return np.take_along_axis(values, np.expand_dims(np.abs(values).argmax(axis), axis), axis)


class RunningReduction:
    """A reduction of arrays of one shape that come one after another. Keeps one array."""

    def __init__(self, reduction: Reduction) -> None:
        self._reduction: Reduction = reduction
        self._value: FloatArray | None = None
        self._count = 0

    def add(self, values: FloatArray) -> None:
        """Adds an array."""
        self._count += 1
        if self._reduction == "l2":
            values = np.square(values)
        self._value = values if self._value is None else self._combine(self._value, values)

    def _combine(self, before: FloatArray, values: FloatArray) -> FloatArray:
        if self._reduction == "max":
            return np.maximum(before, values)
        if self._reduction == "min":
            return np.minimum(before, values)
        if self._reduction == "prod":
            return before * values
        if self._reduction == "absmax":
            return np.where(np.abs(values) > np.abs(before), values, before)
        return before + values

    def result(self) -> FloatArray | None:
        """Returns the reduction of all arrays; None if there was none."""
        value: Any = self._value
        if value is not None and self._reduction == "mean":
            value = value / value.dtype.type(self._count)
        elif value is not None and self._reduction == "l2":
            value = np.sqrt(value)
        return value


def encode(
    rows: FloatArray, encoding: Encoding, top_k: int, axis: int = 0, *, is_difference: bool = False
) -> AttentionArrays:
    """Encodes rows as the kernels do. Numbers beyond the range of the encoding become the greatest of the range.

    Args:
        rows: `[positions, ...]`, or `[queries, positions, ...]` with `axis` 1.
        encoding: The type of the numbers.
        top_k: How many positions of each row are kept, the greatest; 0: all.
        axis: The axis of the positions: 0 or 1.
        is_difference: Whether numbers may be negative. The greatest are then those of the greatest absolute value. Of
            equal ones those at the lowest positions are kept, as the kernels do. Not in uint8.
    """
    dtype = ENCODINGS[encoding]
    limit = torch.finfo(torch.float16 if dtype == torch.float16 else torch.float32).max
    rows = np.clip(rows, -limit, limit)
    if dtype == torch.float32 and not top_k:
        return AttentionArrays(rows)
    if is_difference and top_k:
        order = np.argsort(-np.abs(rows), axis, kind="stable").take(range(min(top_k, rows.shape[axis])), axis)
        kept = np.take_along_axis(rows, order, axis)
        return AttentionArrays(kept.astype(encoding, copy=False), None, order.astype(np.int32))
    num_queries, rest = (rows.shape[0] if axis else 1), rows.shape[axis + 1 :]
    packed = pack(torch.from_numpy(rows.reshape(1, num_queries, rows.shape[axis], -1)), dtype, top_k)

    def unpack(tensor: torch.Tensor, shape: tuple[int, ...]) -> NDArray[Any]:
        return tensor.numpy().reshape((*rows.shape[:axis], *shape, *rest))

    num_kept = packed.values.shape[2]
    return AttentionArrays(
        unpack(packed.values, (num_kept,)),
        None if packed.scales is None else unpack(packed.scales, ()),
        None if packed.positions is None else unpack(packed.positions, (num_kept,)),
    )
