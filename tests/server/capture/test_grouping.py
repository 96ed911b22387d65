"""Rows of units are what Inseq's aggregation functions give, and are encoded as the kernels encode."""

from __future__ import annotations

import inseq.data.aggregation_functions as inseq_functions
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from inseq.utils.torch_utils import aggregate_contiguous
from sidelight.kernels import ENCODINGS, REDUCTIONS, pack
from sidelight.server.capture import RunningReduction, encode, reduce_groups

FUNCTIONS = {
    "mean": inseq_functions.MeanAggregationFunction(),
    "max": inseq_functions.MaxAggregationFunction(),
    "min": inseq_functions.MinAggregationFunction(),
    "sum": inseq_functions.SumAggregationFunction(),
    "prod": inseq_functions.ProdAggregationFunction(),
    "absmax": inseq_functions.AbsMaxAggregationFunction(),
    "l2": inseq_functions.VectorNormAggregationFunction(),
}
NUMBERS = arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 3), st.integers(1, 2)), elements=st.floats(-1, 1, width=32)
)


def groups_of(length: int, cuts: set[int]) -> list[tuple[int, int]]:
    begins = sorted({0, *(cut for cut in cuts if cut < length)})
    return list(zip(begins, [*begins[1:], length], strict=True))


@pytest.mark.covering(1)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1])
def test_groups_are_reduced_as_inseq_reduces_them(reduction, axis):
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(NUMBERS, st.sets(st.integers(0, 12)))
    def check(values, cuts):
        values = np.ascontiguousarray(np.moveaxis(values, 0, axis))
        groups = groups_of(values.shape[axis], cuts)
        expected = aggregate_contiguous(torch.from_numpy(values), groups, FUNCTIONS[reduction], axis).numpy()
        found = reduce_groups(values, [begin for begin, _ in groups], reduction, axis)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    check()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(NUMBERS)
def test_arrays_that_come_one_by_one_are_reduced_as_inseq_reduces_them_together(reduction, values):
    running = RunningReduction(reduction)
    for array in values:
        running.add(array)
    expected = FUNCTIONS[reduction](torch.from_numpy(values), dim=0).numpy()
    np.testing.assert_allclose(running.result(), expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_reduced_to_nothing():
    assert RunningReduction("mean").result() is None


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("top_k", [0, 3, 99])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2)])
def test_rows_are_encoded_as_the_kernels_encode(encoding, top_k, shape):
    rows = np.random.default_rng(0).random((4, *shape), np.float32).round(1)  # with equal numbers
    many = encode(rows, encoding, top_k, axis=1)
    packed = pack(torch.from_numpy(rows).reshape(1, 4, 7, -1), ENCODINGS[encoding], top_k)
    for query in range(4):
        one = encode(rows[query], encoding, top_k)
        for found, among, expected in zip(one, many, packed, strict=False):
            assert (found is None) == (among is None) == (expected is None)
            if found is not None:
                np.testing.assert_array_equal(found, among[query])
                np.testing.assert_array_equal(found.reshape(-1), expected[0, query].numpy().reshape(-1))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_numbers_beyond_the_range_are_the_greatest_of_the_range(encoding):
    rows = np.array([1e-3, 3e38, np.inf], np.float32)
    assert encode(rows, encoding, 0).is_finite()
    values = encode(rows, "float16", 2).values
    assert values.tolist() == [65504, 65504]
