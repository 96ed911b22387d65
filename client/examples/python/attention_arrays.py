"""The bytes of attention become NumPy arrays."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import attention_pb2 as attention

_TYPES = {attention.ENCODING_FLOAT32: "<f4", attention.ENCODING_FLOAT16: "<f2", attention.ENCODING_UINT8: "u1"}


def decode(message: attention.Attention, axis: int, positions: int) -> NDArray[np.float32]:
    """Decodes an Attention message for every position. A position that was not sent is 0.

    `axis` is the axis of the positions: 0 in a step, 1 in encoder self-attention. Raises ValueError.
    """
    shape = tuple(message.shape)
    values = np.frombuffer(message.values, _TYPES[message.encoding]).reshape(shape).astype(np.float32)
    if message.encoding == attention.ENCODING_UINT8:  # a scale for each row: for each index of the other axes
        scales = np.frombuffer(message.scales, "<f4").reshape(shape[:axis] + shape[axis + 1 :])
        values = values * np.expand_dims(scales, axis)
    if not message.positions:
        if shape[axis] != positions:
            raise ValueError(f"attention of shape {shape} is not for {positions} positions")
        return values
    indices = np.frombuffer(message.positions, "<u4").reshape(shape).astype(np.int64)
    if indices.max() >= positions:
        raise ValueError(f"position {indices.max()} is out of range: there are {positions}")
    result = np.zeros((*shape[:axis], positions, *shape[axis + 1 :]), np.float32)
    np.put_along_axis(result, indices, values, axis)
    return result
