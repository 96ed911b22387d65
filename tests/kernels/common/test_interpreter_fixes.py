"""What makes Triton's interpreter faster here gives what it gives by itself, bit by bit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

# As Triton has it: fixtures come later, and put another one in its place.
REDUCE_NUMBERS = interpreter.ReduceOps.generic_reduce


class Combination(NamedTuple):
    """What `tl.reduce` is given, as the interpreter sees it."""

    fn: object


def tensor(data: np.ndarray, dtype: tl.dtype) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)))


def combine(a, b):
    """Its result depends on the order."""
    return a * 0.75 - b


def combine_pair(a, i, b, j):
    return tl.where(a > b, a, b - 0.5), tl.where(a > b, i, j)


@pytest.mark.parametrize("keep_dims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2, None])
@pytest.mark.parametrize(("kind", "dtype"), [("<f4", tl.float32), ("<f2", tl.float16)], ids=["float32", "float16"])
def test_slices_are_reduced_as_numbers_are(kind, dtype, axis, keep_dims):
    random = np.random.default_rng(0)
    numbers = tensor(random.standard_normal((4, 2, 8)).astype(kind), dtype)
    places = tensor(random.integers(-99, 99, (4, 2, 8)).astype("<i4"), tl.int32)
    assert REDUCE_NUMBERS.__module__ == interpreter.__name__
    launch = interpreter._patch_lang(reduced_in_a_launch)
    try:
        pairs = [(combine_pair, (numbers, places))] if axis is not None else []  # which the interpreter gets wrong
        for function, tensors in ((combine, (numbers,)), *pairs):
            reduction = interpreter.ReduceOps(axis, Combination(function), keep_dims)
            fast, slow = reduction.generic_reduce(tensors), REDUCE_NUMBERS(reduction, tensors)
            for ours, theirs in zip(fast, slow, strict=True):
                assert ours.type == theirs.type
                assert ours.handle.data.dtype == theirs.handle.data.dtype
                np.testing.assert_array_equal(ours.handle.data, theirs.handle.data)
    finally:
        launch.restore()


def reduced_in_a_launch():
    """A function that sees `tl`, whose operators the interpreter patches while it runs."""
