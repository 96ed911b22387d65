"""Tensors as Inseq's files have them: safetensors with one tensor, without the library.

The library is half a megabyte to download, and with NumPy it does not read Inseq's float8. A file is a length, a header
in JSON, and the numbers.
"""

# NumPy's stubs leave the numbers of functions partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import json
import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

_NAME = "attribution"  # what Inseq calls the tensor
_LENGTH_BYTES = 8  # of the header's length, a little-endian integer; the header itself ends at a multiple of it
_FLOAT8 = "F8_E4M3"

# The types of Inseq's `scores_precision`, and float64. Numbers are little-endian.
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", _FLOAT8: "u1"}


def encode_tensor(values: NDArray[Any]) -> bytes:
    """Encodes an array of any shape as float32."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    tensor = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({_NAME: tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH_BYTES)
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + data


def decode_tensor(data: bytes) -> NDArray[np.float32]:
    """Decodes the only tensor of a file, of one of Inseq's precisions. Returns an array that can be written to.

    Raises ValueError if the bytes are not whole, or hold something else.
    """
    begin = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        header = json.loads(data[_LENGTH_BYTES:begin])
        (tensor,) = (value for name, value in header.items() if name != "__metadata__")
        dtype, shape, (first, last) = tensor["dtype"], cast("list[int]", tensor["shape"]), tensor["data_offsets"]
        is_whole = first == 0 and begin + last == len(data) and all(type(size) is int and size >= 0 for size in shape)
        kind = np.dtype(_DTYPES[dtype])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError("a tensor is not in the form of safetensors, or its numbers have another type") from error
    if not is_whole or last != math.prod(shape) * kind.itemsize:
        raise ValueError("a tensor does not have as many numbers as its shape says")
    numbers = np.frombuffer(data, kind, offset=begin).reshape(shape)
    return _float8()[numbers] if dtype == _FLOAT8 else numbers.astype(np.float32)


def _float8() -> NDArray[np.float32]:
    """Returns the numbers of all 256 codes: a sign, 4 bits of exponent, 3 bits of fraction, and no infinity."""
    codes = np.arange(128)
    exponents, fractions = codes >> 3, (codes & 7) / 8
    magnitudes = np.where(exponents == 0, fractions * 2.0**-6, (1 + fractions) * 2.0 ** (exponents - 7))
    magnitudes[-1] = np.nan
    return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
