"""`layout_into`, kernel and reference: every encoding, against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import DTYPES, IMPLS, TOLERANCE, assert_is, poisoned
from sidelight.kernels import layout_into, new_result

# Batch, heads, queries, keys, layers.
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 2, 37, 2), (1, 4, 1, 130, 3)]
REDUCED = [(None, None), ("mean", None), ("l2", "absmax")]


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


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"^result: must be for .* \[1, 3, 5, 4\]"):
        layout_into([torch.zeros(1, 4, 3, 5)], new_result(1, 3, 5, 3))
    with pytest.raises(ValueError, match=r"^layers:"):
        layout_into([], new_result(1, 3, 5, 3))


def test_a_row_that_is_zeros_stays_so():
    for impl in IMPLS:
        result = poisoned(1, 2, 9, 1, encoding="uint8")
        layout_into([torch.zeros(1, 1, 2, 9)], result, impl=impl)
        assert np.all(result.values.numpy() == 0)
        assert np.all(result.scales.numpy() == 0)
