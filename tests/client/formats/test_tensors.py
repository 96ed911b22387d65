"""Tensors of Inseq's files, against the library safetensors."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from sidelight.client.formats.tensors import decode_tensor, encode_tensor

SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 4), (7, 3, 2, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bytes_are_the_librarys(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    data = encode_tensor(values)
    assert data == safetensors.numpy.save({"attribution": values})
    np.testing.assert_array_equal(decode_tensor(data), values)
    decode_tensor(data)[...] = 0  # numbers that a caller may change


def test_the_order_of_axes_in_memory_does_not_matter():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).swapaxes(0, 2)
    np.testing.assert_array_equal(decode_tensor(encode_tensor(values)), values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.float8_e4m3fn])
def test_every_precision_of_inseq_is_read(dtype):
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(dtype) if dtype == torch.float8_e4m3fn else torch.randn(4, 64).to(dtype)
    array = decode_tensor(safetensors.torch.save({"attribution": numbers}, metadata={"format": "pt"}))
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, numbers.to(torch.float32).numpy())


def test_what_is_no_tensor_is_refused():
    whole = encode_tensor(np.ones((2, 3), np.float32))
    two = safetensors.numpy.save({"a": np.ones(1, np.float32), "b": np.ones(1, np.float32)})
    integers = safetensors.numpy.save({"a": np.ones(2, np.int32)})
    broken = [whole[:length] for length in range(len(whole))]
    broken += [whole + b"\0", two, integers, b"\xff" * 16, b"\x02" + bytes(7) + b"[]"]
    broken += [whole.replace(b"[2,3]", shape) for shape in (b"[2,4]", b"[2.0]", b"[-6]", b'"aaa"', b"7", b"")]
    broken += [whole.replace(b"[0,24]", offsets) for offsets in (b"[4,24]", b"[0,99]", b'"0,2"', b"[0, 2]")]
    for data in broken:
        with pytest.raises(ValueError, match="a tensor "):
            decode_tensor(data)
