"""Products of bytes by the processor's registers for matrices (AMX): 32 rows by the columns of a panel.

A register holds 16 rows of 64 bytes, and one instruction multiplies two of them: some times faster than vectors do,
even where two threads of one core share what does it. Sums are exact, so which of the two ways a product takes changes
no bit. Panels are read as they are. Compiled only where the processor has such registers.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import COLUMNS, I8, I64, compiled, constant, emit_loop, emit_prefetch, longs
from .matmul_vector import TILE_SCRATCH, finish_row, way_out, write_row, zeros_in
from .primitives import activate

# Of a register, and what one instruction takes of the inner axis: of bytes, and of places, which are of four.
_ROWS, _BYTES = 16, 64
_DEPTH = _BYTES // 4
# Rows of a product.
_MATRIX_ROWS = 2 * _ROWS
# Numbers of 64 bits that say what registers hold.
_CONFIGURATION = 8

# Registers: sums of the first and the second rows by two columns of matrices, rows of x, and weights.
_SUMS, _X, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)
# How often it is asked for what is read next: in each round for two registers of weights, and for all of a panel's.
_FETCHES_OF_TWO = 16
_FETCHES = 2 * _FETCHES_OF_TWO
# What a thread needs of its own, behind what tiles need: sums, and a configuration.
_SUMS_AT = 4 * TILE_SCRATCH
_CONFIGURATION_AT = _SUMS_AT + 4 * COLUMNS * _MATRIX_ROWS
MATRIX_SCRATCH = (_CONFIGURATION_AT - _SUMS_AT) // 4 + 2 * _CONFIGURATION


def _call(builder: ir.IRBuilder, name: str, *given: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in given])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), given)


@compiled
def _configure(room):
    """Prepares this thread's registers, all for 16 rows of 64 bytes. `room` is an address of _CONFIGURATION numbers."""
    made = longs(room, _CONFIGURATION)
    for i in range(_CONFIGURATION):
        made[i] = 0
    made[0] = 1  # the only way there is to divide the registers
    made[2] = made[3] = 0x0040_0040_0040_0040  # bytes of a row, of each register
    made[6] = 0x1010_1010_1010_1010  # rows
    _load_configuration(room)


@intrinsic
def _load_configuration(typingctx, room):  # noqa: ARG001
    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        _call(builder, "ldtilecfg", builder.inttoptr(arguments[0], I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def _release(typingctx):  # noqa: ARG001
    """Gives this thread's registers back: they need not be kept when another thread has its core."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _multiply_rows(typingctx, first, second, x_stride, panel, rounds, sums, ahead, pace):  # noqa: ARG001
    """The sums of 16 rows at `first`, and as many at `second`, by a panel: int32 `[32, COLUMNS]` at `sums`.

    Of so many `rounds` of _DEPTH places. Bytes are unsigned in rows and signed in the panel. `ahead` is what to fetch,
    `pace` bytes at a time, _FETCHES times a round.
    """

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        first, second, x_stride, panel, rounds, sums, ahead, pace = arguments
        row = constant(4 * COLUMNS)  # of the panel, and of sums

        def move(name: str, register: int, address: Any, stride: Any) -> None:
            _call(builder, name, ir.Constant(I8, register), builder.inttoptr(address, I8.as_pointer()), stride)

        for column in range(0, 4 * COLUMNS, 2 * _BYTES):  # two registers of weights at a time
            for register in (*_SUMS[0], *_SUMS[1]):
                _call(builder, "tilezero", ir.Constant(I8, register))

            def round_(number: Any, weights: Any, ahead: Any) -> list[Any]:
                offset = builder.mul(number, constant(_BYTES))
                for register, rows in zip(_X, (first, second), strict=True):
                    move("tileloadd64", register, builder.add(rows, offset), x_stride)
                for i, register in enumerate(_WEIGHTS):
                    move("tileloadd64", register, builder.add(weights, constant(_BYTES * i)), row)
                    for sums_of, x in zip(_SUMS, _X, strict=True):
                        given = (ir.Constant(I8, each) for each in (sums_of[i], x, register))
                        _call(builder, "tdpbusd", *given)
                for _ in range(_FETCHES_OF_TWO):
                    emit_prefetch(builder, ahead, 2)
                    ahead = builder.add(ahead, pace)
                return [builder.add(weights, constant(_DEPTH * 4 * COLUMNS)), ahead]

            carried = [(builder.add(panel, constant(column)), I64), (ahead, I64)]
            _, ahead = emit_loop(builder, rounds, carried, round_)
            for half, registers in enumerate(_SUMS):
                for i, register in enumerate(registers):
                    to = constant(half * _ROWS * 4 * COLUMNS + column + _BYTES * i)
                    move("tilestored64", register, builder.add(sums, to), row)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


@compiled
def takes_matrices(count, places):
    """Whether so many rows of so many places, of bytes, are multiplied so."""
    return count >= _ROWS and places % _DEPTH == 0


@compiled
def multiply_as_matrices(count, layer, added, added_stride, out, out_stride, width, activation, scratch, ahead):
    """All rows, of bytes, by one panel of weights: always as many at a time, where fewer are left some once more.

    As `multiply_in_tiles`; `scratch` has MATRIX_SCRATCH numbers more.
    """
    x, x_stride, weights, places, scales, channels, corrections, bias = layer
    zeros, sums, half = zeros_in(scratch), scratch + _SUMS_AT, _MATRIX_ROWS // 2
    is_plain, floor = way_out(width, activation)
    groups, rounds = (count + _MATRIX_ROWS - 1) // _MATRIX_ROWS, places // _DEPTH
    pace = 4 * COLUMNS * _DEPTH // _FETCHES // groups
    if ahead == 0:
        ahead, pace = weights, 0
    _configure(scratch + _CONFIGURATION_AT)
    for group in range(groups):
        first = max(0, min(group * _MATRIX_ROWS, count - _MATRIX_ROWS))
        second = min(first + half, count - half)
        _multiply_rows(
            *(x + first * x_stride, x + second * x_stride, x_stride, weights, rounds, sums),
            *(ahead + group * rounds * _FETCHES * pace, pace),
        )
        for i in range(_MATRIX_ROWS):
            row = first + i if i < half else second + i - half
            made = sums + 4 * COLUMNS * i
            more, to = zeros, made
            if is_plain:
                to = out + row * out_stride
                if added != 0:
                    more = added + row * added_stride
            finish_row(made, scales + 4 * row, channels, corrections, bias, floor, more, to)
            if not is_plain:
                activate(made, COLUMNS, activation)
                more = zeros if added == 0 else added + row * added_stride
                write_row(made, more, out + row * out_stride, width)
    _release()
