"""The bytes of attention become NumPy arrays."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import attention_pb2

from ..results import FloatArray

_DTYPES = {
    attention_pb2.ENCODING_FLOAT32: np.dtype("<f4"),
    attention_pb2.ENCODING_FLOAT16: np.dtype("<f2"),
    attention_pb2.ENCODING_UINT8: np.dtype("u1"),
}


def parse_attention(message: attention_pb2.Attention, positions: int, *, axis: int = 0, top_k: int = 0) -> FloatArray:
    """Parses an Attention message into floats for every position. Positions that were not sent are 0.

    Args:
        message: The message.
        positions: The number of all positions.
        axis: The axis of the positions: 0 in a step, 1 in encoder self-attention.
        top_k: How many positions of each row are sent at most; the message then holds their indices. 0: all positions.

    Raises:
        ValueError: The bytes do not fill the shape, or the shape or an index does not fit the number of positions.
        KeyError: The encoding is unknown.
    """
    shape = tuple(message.shape)
    if len(shape) <= axis:
        raise ValueError(f"attention of shape {shape} has no axis of positions")
    num_sent = min(top_k, positions) if top_k else positions
    if shape[axis] != num_sent:
        raise ValueError(f"attention of shape {shape} is not for {num_sent} of {positions} positions")
    values: FloatArray = _parse_elements(message.values, _DTYPES[message.encoding], shape, "values")
    if message.encoding == attention_pb2.ENCODING_UINT8:
        # One scale for each row, that is for each index along all axes but the axis of positions.
        scales = _parse_elements(
            message.scales, _DTYPES[attention_pb2.ENCODING_FLOAT32], _without_axis(shape, axis), "scales"
        )
        values = values * np.expand_dims(scales, axis)
    if top_k or message.positions:
        indices = _parse_elements(message.positions, np.dtype("<u4"), shape, "positions").astype(np.int64)
        return _scatter(values, indices, positions, axis)
    return values


def parse_special_shares(message: attention_pb2.Attention, *, axis: int = 0) -> FloatArray:
    """Parses the shares of special tokens, in the shape of the attention without the axis of positions.

    Raises ValueError if they do not fill the shape.
    """
    return np.array(message.special_shares, np.float32).reshape(_without_axis(tuple(message.shape), axis))


def _parse_elements(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], field: str) -> NDArray[Any]:
    """Parses little-endian bytes into an array of the machine's byte order.

    Raises ValueError if the bytes do not fill the shape.
    """
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of {field} do not fill a shape of {shape}")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _scatter(values: FloatArray, indices: NDArray[np.int64], positions: int, axis: int) -> FloatArray:
    """Puts the values at their indices among all positions; all other positions are 0.

    Raises ValueError for an index that is out of range or comes twice.
    """
    if (indices >= positions).any():
        raise ValueError(f"position {indices.max()} is out of range: there are {positions}")
    if (np.diff(np.sort(indices, axis), axis=axis) == 0).any():
        raise ValueError("a position comes twice in a row of attention")
    shape = values.shape
    scattered = np.zeros((*shape[:axis], positions, *shape[axis + 1 :]), values.dtype)
    np.put_along_axis(scattered, indices, values, axis)
    return scattered
