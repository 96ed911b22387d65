"""Products of rows with a panel of weights, tile by tile, in LLVM's own instructions.

A tile is some rows by the columns of a panel, all of whose sums stay in registers. A panel has, for each place of the
inner axis (for bytes: for four of them), the weights of all its columns side by side. Each sum is made in the order of
the inner axis, by one addition a place, however many rows a tile has: so a row's numbers do not depend on its
neighbours. What follows is multiplied and added one by one, since a fused multiply-add might be used for some numbers
and not for others.

Weights come from memory, which is slower than the sums. So while the tiles of one panel are made, those of a single row
apart, they fetch what is read next, evenly, into the core's second cache: on 2 cores, 88 MB of weights for 8 rows take
3.5 ms instead of 5.1.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import (
    COLUMNS,
    F32,
    FLOATS,
    HAS_BYTES,
    I8,
    I32,
    I64,
    INTS,
    LANES,
    ROWS,
    VECTORS,
    broadcast,
    compiled,
    constant,
    emit_loop,
    emit_prefetch,
    floats,
    fused,
    pointer,
)
from .primitives import NONE, RELU, activate

# How often a tile fetches for each place it reads. Processors fetch two lines of the cache together: so it is enough
# for the four that a place has.
_FETCHES = 2


def _bytes_added(builder: ir.IRBuilder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """To each of the sums, four products of bytes."""
    taken = INTS if llvm.llvm_version_info[0] < 22 else ir.VectorType(I8, 4 * LANES)
    name = f"llvm.x86.avx512.vpdpbusd.{LANES * 32}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INTS, [INTS, taken, taken]), name)
    return builder.call(function, [sums, builder.bitcast(unsigned, taken), builder.bitcast(signed, taken)])


def _vectors_at(builder: ir.IRBuilder, address: Any, type_: ir.VectorType, align: int = 4) -> list[Any]:
    """The numbers of all columns."""
    return [
        builder.load(pointer(builder, address, type_, 4 * LANES * column), align=align) for column in range(VECTORS)
    ]


def _floats_of(builder: ir.IRBuilder, sums: list[Any], scale: Any, channels: Any, corrections: Any) -> list[Any]:
    """What sums of bytes stand for."""
    scale = broadcast(builder, builder.load(pointer(builder, scale, F32), align=4), FLOATS)
    by_channel, too_much = _vectors_at(builder, channels, FLOATS), _vectors_at(builder, corrections, INTS)
    whole = [builder.sitofp(builder.sub(sum_, much), FLOATS) for sum_, much in zip(sums, too_much, strict=True)]
    return [
        builder.fmul(builder.fmul(number, channel), scale) for number, channel in zip(whole, by_channel, strict=True)
    ]


def _finish(builder: ir.IRBuilder, numbers: list[Any], bias: Any, floor: Any, added: Any, out: Any) -> None:
    """Adds to the numbers of a row what is to be added, raises them to a floor in between, and writes them."""
    biases, more = _vectors_at(builder, bias, FLOATS), _vectors_at(builder, added, FLOATS)
    floor = broadcast(builder, builder.bitcast(builder.trunc(floor, I32), F32), FLOATS)
    for column in range(VECTORS):
        value = builder.fadd(numbers[column], biases[column])
        value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)  # NaN stays
        value = builder.fadd(value, more[column])
        builder.store(value, pointer(builder, out, FLOATS, 4 * LANES * column), align=4)


def _tile_intrinsic(rows: int, *, of_bytes: bool) -> Any:
    vector = INTS if of_bytes else FLOATS
    # A row alone waits for nothing but memory, and reads it in order: there the processor needs no word.
    fetched = _FETCHES if rows > 1 else 0
    each = [(row, column) for row in range(rows) for column in range(VECTORS)]

    @intrinsic
    def tile(
        typingctx,  # noqa: ARG001
        x,  # noqa: ARG001
        x_stride,  # noqa: ARG001
        panel,  # noqa: ARG001
        places,  # noqa: ARG001
        scales,  # noqa: ARG001
        channels,  # noqa: ARG001
        corrections,  # noqa: ARG001
        bias,  # noqa: ARG001
        floor,  # noqa: ARG001
        added,  # noqa: ARG001
        added_stride,  # noqa: ARG001
        out,  # noqa: ARG001
        out_stride,  # noqa: ARG001
        ahead,  # noqa: ARG001
        pace,  # noqa: ARG001
    ):
        def codegen(context, builder, signature, arguments):  # noqa: ARG001
            (x, x_stride, panel, places, scales, channels, corrections, bias, floor) = arguments[:9]
            (added, added_stride, out, out_stride, ahead, pace) = arguments[9:]
            rows_at = [builder.add(x, builder.mul(x_stride, constant(row))) for row in range(rows)]

            def place(number: Any, weights_at: Any, ahead_at: Any, *sums: Any) -> list[Any]:
                weights = _vectors_at(builder, weights_at, vector, 4 * LANES)
                for _ in range(fetched):
                    emit_prefetch(builder, ahead_at, 2)
                    ahead_at = builder.add(ahead_at, pace)
                offset = builder.shl(number, constant(2))
                made: list[Any] = []
                for row in range(rows):
                    value = builder.load(pointer(builder, builder.add(rows_at[row], offset), vector.element), align=4)
                    value = broadcast(builder, value, vector)
                    for column in range(VECTORS):
                        sum_ = sums[row * VECTORS + column]
                        made.append(
                            _bytes_added(builder, sum_, value, weights[column])
                            if of_bytes
                            else fused(builder, value, weights[column], sum_)
                        )
                return [builder.add(weights_at, constant(4 * COLUMNS)), ahead_at, *made]

            carried = [(panel, I64), (ahead, I64), *((ir.Constant(vector, None), vector) for _ in each)]
            _, _, *sums = emit_loop(builder, places, carried, place)

            for row in range(rows):
                to = builder.add(out, builder.mul(out_stride, constant(row)))
                more = builder.add(added, builder.mul(added_stride, constant(row)))
                made = sums[row * VECTORS : (row + 1) * VECTORS]
                if of_bytes:
                    scale = builder.add(scales, constant(4 * row))
                    made = _floats_of(builder, made, scale, channels, corrections)
                _finish(builder, made, bias, floor, more, to)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 15), codegen

    return tile


def _tile_function(rows: int, *, of_bytes: bool) -> Any:
    """Products of up to so many rows, each number of rows with code of its own."""
    tile = _tile_intrinsic(rows, of_bytes=of_bytes)
    if rows == 1:

        @compiled
        def one(count, *arguments):  # noqa: ARG001
            tile(*arguments)

        return one
    fewer = _tile_function(rows - 1, of_bytes=of_bytes)

    @compiled
    def some(count, *arguments):
        if count == rows:
            tile(*arguments)
        else:
            fewer(count, *arguments)

    return some


# The columns of a panel for `count` rows at x: their sums, of bytes without `corrections`, times `channels` and a
# row's scale; plus `bias`, raised to a `floor`, a float32's bits; plus what is `added`, COLUMNS numbers for each row;
# to `out`. Bytes are unsigned in x and signed in weights, and their `places` are of four. `ahead` is what to fetch,
# `pace` bytes at a time, twice a place.
tile_of_floats = _tile_function(ROWS, of_bytes=False)
_tile_of_bytes = _tile_function(ROWS, of_bytes=True) if HAS_BYTES else tile_of_floats


@intrinsic
def finish_row(typingctx, sums, scale, channels, corrections, bias, floor, added, out):  # noqa: ARG001
    """What becomes of a row's sums of bytes, int32; `out` may be `sums`."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        sums, scale, channels, corrections, bias, floor, added, out = arguments
        made = _floats_of(builder, _vectors_at(builder, sums, INTS), scale, channels, corrections)
        _finish(builder, made, bias, floor, added, out)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


# What a thread needs of its own for tiles, in numbers of 32 bits: a tile, and a row of zeros.
TILE_SCRATCH = (ROWS + 1) * COLUMNS


@compiled
def zeros_in(scratch):
    """Where COLUMNS zeros stand."""
    return scratch + 4 * ROWS * COLUMNS


# Bits of float32 numbers: what no number is below, and 0.
NO_FLOOR, _ZERO = int(np.float32(-np.inf).view(np.int32)), 0


@compiled
def way_out(width, activation):
    """Whether numbers can be written where they belong at once, and the bits of what they are raised to."""
    floor = _ZERO if activation == RELU else NO_FLOOR
    return width == COLUMNS and activation in (NONE, RELU), floor


@compiled
def multiply_in_tiles(of_bytes, count, layer, added, added_stride, out, out_stride, width, activation, scratch, ahead):
    """All rows by one panel of weights: a tile of rows at a time, in tiles about equal.

    Args:
        of_bytes: Whether these are bytes.
        count: How many rows.
        layer: Addresses and numbers: x and its stride, the panel and how many places it has, the scales of rows, and
            the panel's channels, corrections and bias.
        added: What is added after the activation, which is not `out`; 0: nothing.
        added_stride: Bytes from one row of that to the next.
        out: Where columns go.
        out_stride: Likewise.
        width: How many of the columns.
        activation: As `primitives` numbers them.
        scratch: The address of TILE_SCRATCH numbers of this thread's own, zeros at first.
        ahead: What is read next, as much as the panel; 0: not known.
    """
    x, x_stride, weights, places, scales, channels, corrections, bias = layer
    is_plain, floor = way_out(width, activation)
    zeros = zeros_in(scratch)
    tiles = (count + ROWS - 1) // ROWS
    pace = 4 * COLUMNS // _FETCHES // tiles
    if ahead == 0:  # then what is there already is asked for again
        ahead, pace = weights, 0
    row = 0
    for tile in range(tiles):
        rows = (count - row + tiles - tile - 1) // (tiles - tile)
        to, to_stride, more, more_stride = scratch, 4 * COLUMNS, zeros, 0
        if is_plain:
            to, to_stride = out + row * out_stride, out_stride
            if added != 0:
                more, more_stride = added + row * added_stride, added_stride
        arguments = (
            *(x + row * x_stride, x_stride, weights, places, scales + 4 * row, channels, corrections, bias),
            *(floor, more, more_stride, to, to_stride, ahead, pace),
        )
        if of_bytes:
            _tile_of_bytes(rows, *arguments)
        else:
            tile_of_floats(rows, *arguments)
        if not is_plain:
            activate(scratch, rows * COLUMNS, activation)
            for i in range(row, row + rows):
                more = zeros if added == 0 else added + i * added_stride
                write_row(scratch + 4 * COLUMNS * (i - row), more, out + i * out_stride, width)
        ahead += places * _FETCHES * pace
        row += rows


@compiled
def write_row(tile, added, to, width):
    """Adds what is to be added to a row of a tile, and writes it to where it belongs."""
    if width == COLUMNS:
        _add_columns(tile, added, to)
    else:
        numbers, more, out = floats(tile, width), floats(added, width), floats(to, width)
        for j in range(width):
            out[j] = numbers[j] + more[j]


@intrinsic
def _add_columns(typingctx, a, b, out):  # noqa: ARG001
    """Adds COLUMNS float32 numbers to as many others."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        left, right = (_vectors_at(builder, address, FLOATS) for address in arguments[:2])
        for column in range(VECTORS):
            sum_ = builder.fadd(left[column], right[column])
            builder.store(sum_, pointer(builder, arguments[2], FLOATS, 4 * LANES * column), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen
