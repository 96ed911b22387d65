"""Every encoding of `layout_into`, Triton and reference, against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import DTYPES, IMPLS, TOLERANCE, assert_is, poisoned
from sidelight.kernels import layout_into, new_attention_tensors
from sidelight.kernels.common import triton_output

# Batch, heads, queries, keys, layers.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 37, 2), (1, 4, 1, 130, 3)]
REDUCED = [(None, None), ("mean", None), ("l2", "absmax")]


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("encoding", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50])
@pytest.mark.parametrize(("over_heads", "over_layers"), REDUCED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_encoding(shape, over_heads, over_layers, top_k, encoding, impl):
    batch, heads, queries, keys, count = shape
    random = torch.Generator().manual_seed(keys)
    layers = [torch.rand(batch, queries, heads, keys, generator=random).transpose(1, 2) for _ in range(count)]
    expected = truth.columns(
        [layer.double().numpy() for layer in layers], over_heads=over_heads, over_layers=over_layers
    )
    result = poisoned(batch, queries, keys, expected.shape[3], encoding=encoding, top_k=top_k)
    layout_into(layers, result, over_heads=over_heads, over_layers=over_layers, impl=impl)
    assert_is(result, expected, 2e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_longer_than_a_tile(impl):
    layers = [torch.rand(1, 2, 1, 4200) for _ in range(2)]
    expected = truth.columns([layer.double().numpy() for layer in layers], over_heads="mean")
    result = poisoned(1, 1, 4200, 2, encoding="uint8")
    layout_into(layers, result, over_heads="mean", impl=impl)
    assert_is(result, expected, 2e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_halves(dtype, impl):
    layers = [torch.rand(1, 4, 3, 33).to(dtype) for _ in range(2)]
    expected = truth.columns([layer.double().numpy() for layer in layers])
    result = poisoned(1, 3, 33, 8, encoding="uint8")
    layout_into(layers, result, impl=impl)
    assert_is(result, expected, TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("top_k", [0, 3, 12, 40])
def test_numbers_below_zero(top_k, impl):
    """Raw scores may be below 0. Bytes may not."""
    random = torch.Generator().manual_seed(0)
    layers = [torch.randn(1, 2, 3, 37, generator=random), -torch.rand(1, 2, 3, 37, generator=random)]
    layers[0][..., ::5], layers[0][..., 1::5] = 0.0, -0.0
    for encoding in ("float32", "uint8"):
        ours, expected = (poisoned(1, 3, 37, 4, encoding=encoding, top_k=top_k) for _ in range(2))
        layout_into(layers, ours, impl=impl)
        layout_into(layers, expected, impl="reference")
        for tensor, reference in zip(ours[:3], expected[:3], strict=True):
            assert (tensor is None) == (reference is None)
            if tensor is not None:
                torch.testing.assert_close(tensor, reference, rtol=0, atol=0)
    # The reference is sorted.
    sorted_ = poisoned(1, 3, 37, 4, top_k=5)
    layout_into(layers, sorted_, impl="reference")
    np.testing.assert_array_equal(sorted_.values[0, 0, :, 2], -np.sort(-layers[1][0, 0, 0].numpy())[:5])


@pytest.mark.parametrize(("over_heads", "over_layers"), REDUCED)
@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_many_positions_are_sorted_in_slices_of_queries(encoding, over_heads, over_layers, monkeypatch):
    random = torch.Generator().manual_seed(0)
    layers = [torch.rand(2, 19, 3, 41, generator=random).transpose(1, 2) for _ in range(2)]
    expected = truth.columns(
        [layer.double().numpy() for layer in layers], over_heads=over_heads, over_layers=over_layers
    )
    columns = expected.shape[3]
    monkeypatch.setattr(triton_output, "_FLOAT_BYTES", 4 * 2 * 41 * columns * 7)  # seven queries
    result = poisoned(2, 19, 41, columns, encoding=encoding, top_k=36)
    layout_into(layers, result, over_heads=over_heads, over_layers=over_layers, impl="triton")
    assert_is(result, expected, 2e-6)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"^out: must be for .* \[1, 3, 5, 4\]"):
        layout_into([torch.zeros(1, 4, 3, 5)], new_attention_tensors(1, 3, 5, 3))
    with pytest.raises(ValueError, match=r"^layers:"):
        layout_into([], new_attention_tensors(1, 3, 5, 3))


def test_rows_of_zeros():
    for impl in IMPLS:
        result = poisoned(1, 2, 9, 1, encoding="uint8")
        layout_into([torch.zeros(1, 1, 2, 9)], result, impl=impl)
        assert np.all(result.values.numpy() == 0)
        assert np.all(result.scales.numpy() == 0)
