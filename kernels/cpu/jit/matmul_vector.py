"""Matrix products of rows with a panel of weights, tile by tile, in LLVM's vector instructions.

A tile is some rows by the columns of a panel; all its sums stay in registers. For each index of the inner axis (for
int8: for each four), a panel holds the weights of all its columns side by side. A sum is computed in the order of the
inner axis, with one addition an index, however many rows a tile has: so the numbers of a row do not depend on its
neighbours. After the sums, multiplications and additions stay separate, since a fused multiply-add might be used for
some numbers and not for others.

Weights come from memory, which is slower than the arithmetic. While the tiles of a panel are computed, they prefetch
what is read next into the core's second-level cache, evenly; tiles of one row do not. On 2 cores, 88 MB of weights for
8 rows take 3.5 ms instead of 5.1.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import HAS_VNNI, LANES, PANEL_WIDTH, TILE_ROWS, VECTORS, compiled
from .llvm import (
    F32,
    FLOATS,
    I8,
    I32,
    I64,
    INTS,
    const_int64,
    emit_broadcast,
    emit_fma,
    emit_loop,
    emit_pointer,
    emit_prefetch,
    float32_at,
)
from .primitives import NONE, RELU, activate

# How many prefetches a tile makes for each index of the inner axis. Processors fetch two cache lines together, so this
# is enough for the four lines of an index.
_PREFETCHES = 2


def _emit_dot_int8(builder: ir.IRBuilder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """Emits the addition of four products of bytes to each sum."""
    type_ = INTS if llvm.llvm_version_info[0] < 22 else ir.VectorType(I8, 4 * LANES)
    name = f"llvm.x86.avx512.vpdpbusd.{LANES * 32}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(INTS, [INTS, type_, type_]), name)
    return builder.call(function, [sums, builder.bitcast(unsigned, type_), builder.bitcast(signed, type_)])


def _emit_load_columns(builder: ir.IRBuilder, address: Any, type_: ir.VectorType, align: int = 4) -> list[Any]:
    """Emits loads of the vectors of all columns of a panel."""
    return [
        builder.load(emit_pointer(builder, address, type_, 4 * LANES * column), align=align)
        for column in range(VECTORS)
    ]


def _emit_dequantize(
    builder: ir.IRBuilder, sums: list[Any], scale: Any, channel_scales: Any, corrections: Any
) -> list[Any]:
    """Emits the float32 numbers that the int32 sums of a row stand for."""
    scale = emit_broadcast(builder, builder.load(emit_pointer(builder, scale, F32), align=4), FLOATS)
    scales = _emit_load_columns(builder, channel_scales, FLOATS)
    offsets = _emit_load_columns(builder, corrections, INTS)
    exact = [builder.sitofp(builder.sub(sum_, offset), FLOATS) for sum_, offset in zip(sums, offsets, strict=True)]
    return [
        builder.fmul(builder.fmul(number, channel_scale), scale)
        for number, channel_scale in zip(exact, scales, strict=True)
    ]


def _emit_store_row(builder: ir.IRBuilder, numbers: list[Any], bias: Any, floor: Any, added: Any, out: Any) -> None:
    """Emits max(numbers + bias, floor) + added, written to `out`."""
    biases, addends = _emit_load_columns(builder, bias, FLOATS), _emit_load_columns(builder, added, FLOATS)
    floor = emit_broadcast(builder, builder.bitcast(builder.trunc(floor, I32), F32), FLOATS)
    for column in range(VECTORS):
        value = builder.fadd(numbers[column], biases[column])
        value = builder.select(builder.fcmp_ordered("<", value, floor), floor, value)  # NaN stays NaN
        value = builder.fadd(value, addends[column])
        builder.store(value, emit_pointer(builder, out, FLOATS, 4 * LANES * column), align=4)


def _tile_intrinsic(num_rows: int, *, is_int8: bool) -> Any:
    """Makes an intrinsic that computes a tile of `num_rows` rows. `tile_float32` says what the arguments mean."""
    vector = INTS if is_int8 else FLOATS
    # A tile of one row waits for nothing but memory, and reads memory in order: the processor prefetches by itself.
    prefetches = _PREFETCHES if num_rows > 1 else 0

    @intrinsic
    def tile(
        typingctx,
        x,
        x_stride,
        panel,
        depth,
        scales,
        channel_scales,
        corrections,
        bias,
        floor,
        added,
        added_stride,
        out,
        out_stride,
        ahead,
        pace,
    ):
        def codegen(context, builder, signature, arguments):
            (x, x_stride, panel, depth, scales, channel_scales, corrections, bias, floor) = arguments[:9]
            (added, added_stride, out, out_stride, ahead, pace) = arguments[9:]
            row_addresses = [builder.add(x, builder.mul(x_stride, const_int64(row))) for row in range(num_rows)]

            def add_products(number: Any, weights_at: Any, ahead_at: Any, *sums: Any) -> list[Any]:
                weights = _emit_load_columns(builder, weights_at, vector, 4 * LANES)
                for _ in range(prefetches):
                    emit_prefetch(builder, ahead_at, 2)
                    ahead_at = builder.add(ahead_at, pace)
                offset = builder.shl(number, const_int64(2))
                results: list[Any] = []
                for row in range(num_rows):
                    at = builder.add(row_addresses[row], offset)
                    value = builder.load(emit_pointer(builder, at, vector.element), align=4)
                    value = emit_broadcast(builder, value, vector)
                    for column in range(VECTORS):
                        sum_ = sums[row * VECTORS + column]
                        results.append(
                            _emit_dot_int8(builder, sum_, value, weights[column])
                            if is_int8
                            else emit_fma(builder, value, weights[column], sum_)
                        )
                return [builder.add(weights_at, const_int64(4 * PANEL_WIDTH)), ahead_at, *results]

            zeros = [(ir.Constant(vector, None), vector)] * (num_rows * VECTORS)
            _, _, *sums = emit_loop(builder, depth, [(panel, I64), (ahead, I64), *zeros], add_products)

            for row in range(num_rows):
                numbers = sums[row * VECTORS : (row + 1) * VECTORS]
                if is_int8:
                    scale = builder.add(scales, const_int64(4 * row))
                    numbers = _emit_dequantize(builder, numbers, scale, channel_scales, corrections)
                to = builder.add(out, builder.mul(out_stride, const_int64(row)))
                added_at = builder.add(added, builder.mul(added_stride, const_int64(row)))
                _emit_store_row(builder, numbers, bias, floor, added_at, to)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 15), codegen

    return tile


def _tile_function(max_rows: int, *, is_int8: bool) -> Any:
    """Makes a function that computes a tile of at most `max_rows` rows. Each number of rows has its own code."""
    tile = _tile_intrinsic(max_rows, is_int8=is_int8)
    if max_rows == 1:

        @compiled
        def tile_of_one(rows, *arguments):
            tile(*arguments)

        return tile_of_one
    smaller_tile = _tile_function(max_rows - 1, is_int8=is_int8)

    @compiled
    def tile_of_any(rows, *arguments):
        if rows == max_rows:
            tile(*arguments)
        else:
            smaller_tile(rows, *arguments)

    return tile_of_any


# A tile of `rows` rows by the columns of a panel: out = max(sums * scales + bias, floor) + added.
# - The sums are those of float32 numbers, without scales; or of bytes, unsigned in x and signed in the panel, minus
#   `corrections`, times `channel_scales` and the scale of the row. For bytes `depth` counts groups of four.
# - `floor` is the bits of a float32. `added` and `out` have PANEL_WIDTH numbers for each row.
# - Memory from `ahead` on is prefetched, _PREFETCHES times an index of the inner axis, `pace` bytes apart.
tile_float32 = _tile_function(TILE_ROWS, is_int8=False)
_tile_int8 = _tile_function(TILE_ROWS, is_int8=True) if HAS_VNNI else tile_float32


@intrinsic
def finish_row(typingctx, sums, scale, channel_scales, corrections, bias, floor, added, out):
    """Writes the results of a row from its int32 sums, as `_tile_int8` does; `out` may be `sums`."""

    def codegen(context, builder, signature, arguments):
        sums, scale, channel_scales, corrections, bias, floor, added, out = arguments
        numbers = _emit_load_columns(builder, sums, INTS)
        numbers = _emit_dequantize(builder, numbers, scale, channel_scales, corrections)
        _emit_store_row(builder, numbers, bias, floor, added, out)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


# The scratch memory of a thread for tiles, in numbers of 32 bits: a tile, and a row of zeros.
TILE_SCRATCH = (TILE_ROWS + 1) * PANEL_WIDTH


@compiled
def zeros_in(scratch):
    """Returns the address of PANEL_WIDTH zeros."""
    return scratch + 4 * TILE_ROWS * PANEL_WIDTH


# The bits of float32 numbers: minus infinity, and 0.
NO_FLOOR, _ZERO = int(np.float32(-np.inf).view(np.int32)), 0


@compiled
def store_options(width, activation):
    """Returns whether a tile may write its results directly, and the bits of the floor of the results."""
    floor = _ZERO if activation == RELU else NO_FLOOR
    return width == PANEL_WIDTH and activation in (NONE, RELU), floor


@compiled
def multiply_vector(is_int8, count, inputs, added, added_stride, out, out_stride, width, activation, scratch, ahead):
    """Multiplies all rows with one panel of weights, in tiles of about equal size.

    Args:
        is_int8: Whether rows and weights are bytes.
        count: How many rows.
        inputs: Addresses and numbers: x and its stride, the panel and its depth, the scales of rows, and the channel
            scales, corrections and bias of the panel.
        added: The address of what is added after the activation, which is not `out`; 0: nothing.
        added_stride: Bytes from one row of `added` to the next.
        out: The address of the result.
        out_stride: Bytes from one row of `out` to the next.
        width: How many columns are written.
        activation: The number of the activation (see `primitives`).
        scratch: The address of TILE_SCRATCH numbers that only this thread uses, zeros at first.
        ahead: The address of what is read next, as long as the panel; 0 where unknown.
    """
    x, x_stride, panel, depth, scales, channel_scales, corrections, bias = inputs
    is_direct, floor = store_options(width, activation)
    zeros = zeros_in(scratch)
    tiles = (count + TILE_ROWS - 1) // TILE_ROWS
    pace = 4 * PANEL_WIDTH // _PREFETCHES // tiles
    if ahead == 0:  # prefetches memory that is in the cache already
        ahead, pace = panel, 0
    row = 0
    for tile in range(tiles):
        rows = (count - row + tiles - tile - 1) // (tiles - tile)
        to, to_stride, addend, addend_stride = scratch, 4 * PANEL_WIDTH, zeros, 0
        if is_direct:
            to, to_stride = out + row * out_stride, out_stride
            if added != 0:
                addend, addend_stride = added + row * added_stride, added_stride
        arguments = (
            *(x + row * x_stride, x_stride, panel, depth, scales + 4 * row, channel_scales, corrections, bias),
            *(floor, addend, addend_stride, to, to_stride, ahead, pace),
        )
        if is_int8:
            _tile_int8(rows, *arguments)
        else:
            tile_float32(rows, *arguments)
        if not is_direct:
            activate(scratch, rows * PANEL_WIDTH, activation)
            for i in range(row, row + rows):
                addend = zeros if added == 0 else added + i * added_stride
                write_row(scratch + 4 * PANEL_WIDTH * (i - row), addend, out + i * out_stride, width)
        ahead += depth * _PREFETCHES * pace
        row += rows


@compiled
def write_row(tile, added, to, width):
    """Adds `added` to a row of a tile, and writes its first `width` columns."""
    if width == PANEL_WIDTH:
        _add_columns(tile, added, to)
    else:
        numbers, addends, out = float32_at(tile, width), float32_at(added, width), float32_at(to, width)
        for j in range(width):
            out[j] = numbers[j] + addends[j]


@intrinsic
def _add_columns(typingctx, a, b, out):
    """Writes the sums of PANEL_WIDTH pairs of float32 numbers."""

    def codegen(context, builder, signature, arguments):
        left, right = (_emit_load_columns(builder, address, FLOATS) for address in arguments[:2])
        for column in range(VECTORS):
            sum_ = builder.fadd(left[column], right[column])
            builder.store(sum_, emit_pointer(builder, arguments[2], FLOATS, 4 * LANES * column), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen
