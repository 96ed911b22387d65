"""Bytes are counted as memory sees them: masked lanes do not count, shared addresses count once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import triton
import triton.language as tl
from sidelight.kernels.tools.memory_traffic import Traffic, count
from triton.runtime.interpreter import InterpreterBuilder

# @triton.jit decides where it decorates.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")

    @triton.jit
    def scale_kernel(x, factor, out, size, BLOCK: tl.constexpr):  # noqa: N803
        place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        by = tl.load(factor)
        tl.store(out + place, tl.load(x + place, mask=place < size) * by, mask=place < size)

    @triton.jit
    def rows_kernel(x, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
        row = tl.broadcast_to(tl.arange(0, ROWS)[:, None], (ROWS, COLUMNS))
        column = tl.arange(0, COLUMNS)[None, :]
        tl.store(out + row * COLUMNS + column, tl.load(x + row))

    @triton.jit
    def twice_kernel(x, out, BLOCK: tl.constexpr):  # noqa: N803
        place = tl.arange(0, BLOCK)
        tl.store(out + place, tl.load(x + place) + tl.load(x + place))

    @triton.jit
    def add_kernel(x, out, BLOCK: tl.constexpr):  # noqa: N803
        place = tl.arange(0, BLOCK)
        tl.atomic_add(out + place, tl.load(x + place))

    @triton.jit
    def descriptor_kernel(x, out, size, BLOCK: tl.constexpr):  # noqa: N803
        read = tl.make_tensor_descriptor(x, (size,), (1,), (BLOCK,))
        write = tl.make_tensor_descriptor(out, (size,), (1,), (BLOCK,))
        write.store((0,), read.load((0,)))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.float16, 2), (torch.int64, 8)])
def test_counts_lanes_whose_mask_is_true(dtype: torch.dtype, size: int) -> None:
    x, factor, out = torch.arange(100).to(dtype), torch.tensor([2]).to(dtype), torch.zeros(100, dtype=dtype)
    # Two programs, of 64 lanes each: 100 numbers, and the factor for each program.
    moved = count(lambda: scale_kernel[(2,)](x, factor, out, 100, BLOCK=64))
    assert moved == Traffic(loaded=(100 + 2) * size, stored=100 * size)
    assert torch.equal(out, x * 2)  # counting changes nothing


def test_counts_an_address_once_in_an_access() -> None:
    x, out = torch.arange(8.0), torch.zeros(8, 16)
    assert count(lambda: rows_kernel[(1,)](x, out, ROWS=8, COLUMNS=16)) == Traffic(8 * 4, 8 * 16 * 4)
    assert torch.equal(out, x[:, None].expand(8, 16))


def test_counts_it_in_each_access() -> None:
    x, out = torch.arange(32.0), torch.zeros(32)
    assert count(lambda: twice_kernel[(1,)](x, out, BLOCK=32)) == Traffic(2 * 32 * 4, 32 * 4)


def test_counts_booleans_as_bytes() -> None:
    x, out = torch.ones(8, dtype=torch.bool), torch.zeros(8, 16, dtype=torch.bool)
    assert count(lambda: rows_kernel[(1,)](x, out, ROWS=8, COLUMNS=16)) == Traffic(8, 8 * 16)


def test_counts_both_ways_of_an_atomic_addition() -> None:
    x, out = torch.arange(32.0), torch.ones(32)
    assert count(lambda: add_kernel[(1,)](x, out, BLOCK=32)) == Traffic(2 * 32 * 4, 32 * 4)
    assert torch.equal(out, x + 1)


def test_counts_what_is_inside_of_a_descriptor() -> None:
    x, out = torch.arange(20.0), torch.zeros(20)
    assert count(lambda: descriptor_kernel[(1,)](x, out, 20, BLOCK=32)) == Traffic(20 * 4, 20 * 4)
    assert torch.equal(out, x)


def test_counts_all_launches_and_none_outside() -> None:
    x, out = torch.arange(32.0), torch.zeros(32)

    def launch() -> None:
        twice_kernel[(1,)](x, out, BLOCK=32)

    def both() -> None:
        launch()
        launch()

    launch()
    assert count(both) == Traffic(4 * 32 * 4, 2 * 32 * 4)
    launch()
    assert count(lambda: None) == Traffic(0, 0)


def _fails() -> None:
    raise ValueError


@pytest.mark.parametrize("run", [lambda: None, _fails])
def test_leaves_the_interpreter_as_it_was(run: Callable[[], None]) -> None:
    names = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
    before = [getattr(InterpreterBuilder, name) for name in names]
    if run is _fails:
        with pytest.raises(ValueError):  # noqa: PT011
            count(run)
    else:
        count(run)
    assert [getattr(InterpreterBuilder, name) for name in names] == before
