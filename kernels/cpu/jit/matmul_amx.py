"""Matrix products of int8 rows in the processor's tile registers (AMX): 32 rows by the columns of a panel.

A tile register holds 16 rows of 64 bytes, and one instruction multiplies two registers: some times faster than vectors,
also where two threads of one core share the unit that multiplies. Sums are exact, so AMX and vectors give the same
bits. Panels are the same for both. Import this module only where `isa.HAS_AMX` is true.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import PANEL_WIDTH, compiled
from .llvm import I8, I64, const_int64, emit_loop, emit_prefetch, int64_at
from .matmul_vector import TILE_SCRATCH, finish_row, store_options, write_row, zeros_in
from .primitives import activate

# A tile register, and what one instruction takes of the inner axis: bytes, and groups of four bytes.
_REGISTER_ROWS, _REGISTER_BYTES = 16, 64
_REGISTER_DEPTH = _REGISTER_BYTES // 4
# Rows that are multiplied at once.
_BLOCK_ROWS = 2 * _REGISTER_ROWS
# Numbers of 64 bits in a configuration of the registers.
_CONFIGURATION = 8

# Registers: sums of the first and of the second 16 rows, by two columns of registers; rows of x; weights.
_SUMS, _X, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)
# Prefetches in each round for two registers of weights, and for all weights of a panel.
_PREFETCHES_A_PAIR = 16
_PREFETCHES = 2 * _PREFETCHES_A_PAIR
# The scratch memory of a thread, after the memory for tiles: sums, and a configuration.
_SUMS_OFFSET = 4 * TILE_SCRATCH
_CONFIGURATION_OFFSET = _SUMS_OFFSET + 4 * PANEL_WIDTH * _BLOCK_ROWS
AMX_SCRATCH = (_CONFIGURATION_OFFSET - _SUMS_OFFSET) // 4 + 2 * _CONFIGURATION


def _emit_call(builder: ir.IRBuilder, name: str, *arguments: Any) -> None:
    type_ = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, type_, f"llvm.x86.{name}"), arguments)


@compiled
def _configure(address):
    """Configures this thread's registers, all for 16 rows of 64 bytes, with _CONFIGURATION numbers at an address."""
    configuration = int64_at(address, _CONFIGURATION)
    for i in range(_CONFIGURATION):
        configuration[i] = 0
    configuration[0] = 1  # the palette: there is only this one
    configuration[2] = configuration[3] = 0x0040_0040_0040_0040  # bytes of a row, for each register
    configuration[6] = 0x1010_1010_1010_1010  # rows
    _load_configuration(address)


@intrinsic
def _load_configuration(typingctx, address):
    def codegen(context, builder, signature, arguments):
        _emit_call(builder, "ldtilecfg", builder.inttoptr(arguments[0], I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def _release(typingctx):
    """Releases this thread's registers: the system need not save them when another thread gets the core."""

    def codegen(context, builder, signature, arguments):
        _emit_call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _multiply_rows(typingctx, first, second, x_stride, panel, rounds, sums, ahead, pace):
    """Writes the sums of 16 rows at `first` and 16 rows at `second` by a panel: int32 `[32, PANEL_WIDTH]` at `sums`.

    The inner axis has `rounds` times _REGISTER_DEPTH groups of four bytes, unsigned in rows and signed in the panel.
    Memory from `ahead` on is prefetched, _PREFETCHES times a round, `pace` bytes apart.
    """

    def codegen(context, builder, signature, arguments):
        first, second, x_stride, panel, rounds, sums, ahead, pace = arguments
        row = const_int64(4 * PANEL_WIDTH)  # bytes of a row of the panel, and of sums

        def move(name: str, register: int, address: Any, stride: Any) -> None:
            _emit_call(builder, name, ir.Constant(I8, register), builder.inttoptr(address, I8.as_pointer()), stride)

        for column in range(0, 4 * PANEL_WIDTH, 2 * _REGISTER_BYTES):  # two registers of weights at a time
            for register in (*_SUMS[0], *_SUMS[1]):
                _emit_call(builder, "tilezero", ir.Constant(I8, register))

            def multiply(number: Any, weights: Any, ahead: Any) -> list[Any]:
                offset = builder.mul(number, const_int64(_REGISTER_BYTES))
                for register, rows in zip(_X, (first, second), strict=True):
                    move("tileloadd64", register, builder.add(rows, offset), x_stride)
                for i, register in enumerate(_WEIGHTS):
                    move("tileloadd64", register, builder.add(weights, const_int64(_REGISTER_BYTES * i)), row)
                    for row_sums, x in zip(_SUMS, _X, strict=True):
                        registers = (ir.Constant(I8, number) for number in (row_sums[i], x, register))
                        _emit_call(builder, "tdpbusd", *registers)
                for _ in range(_PREFETCHES_A_PAIR):
                    emit_prefetch(builder, ahead, 2)
                    ahead = builder.add(ahead, pace)
                return [builder.add(weights, const_int64(_REGISTER_DEPTH * 4 * PANEL_WIDTH)), ahead]

            carried = [(builder.add(panel, const_int64(column)), I64), (ahead, I64)]
            _, ahead = emit_loop(builder, rounds, carried, multiply)
            for half, registers in enumerate(_SUMS):
                for i, register in enumerate(registers):
                    to = const_int64(half * _REGISTER_ROWS * 4 * PANEL_WIDTH + column + _REGISTER_BYTES * i)
                    move("tilestored64", register, builder.add(sums, to), row)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), codegen


@compiled
def can_use_amx(rows, depth):
    """Returns whether `multiply_amx` takes so many rows of so many groups of four bytes."""
    return rows >= _REGISTER_ROWS and depth % _REGISTER_DEPTH == 0


@compiled
def multiply_amx(count, inputs, added, added_stride, out, out_stride, width, activation, scratch, ahead):
    """Multiplies all rows, int8, with one panel of weights, as `multiply_vector` does.

    Blocks always have as many rows: where fewer rows are left, some rows are multiplied once more. `scratch` has
    AMX_SCRATCH numbers more.
    """
    x, x_stride, panel, depth, scales, channel_scales, corrections, bias = inputs
    zeros, sums, half = zeros_in(scratch), scratch + _SUMS_OFFSET, _BLOCK_ROWS // 2
    is_direct, floor = store_options(width, activation)
    blocks, rounds = (count + _BLOCK_ROWS - 1) // _BLOCK_ROWS, depth // _REGISTER_DEPTH
    pace = 4 * PANEL_WIDTH * _REGISTER_DEPTH // _PREFETCHES // blocks
    if ahead == 0:
        ahead, pace = panel, 0
    _configure(scratch + _CONFIGURATION_OFFSET)
    for block in range(blocks):
        first = max(0, min(block * _BLOCK_ROWS, count - _BLOCK_ROWS))
        second = min(first + half, count - half)
        _multiply_rows(
            *(x + first * x_stride, x + second * x_stride, x_stride, panel, rounds, sums),
            *(ahead + block * rounds * _PREFETCHES * pace, pace),
        )
        for i in range(_BLOCK_ROWS):
            row = first + i if i < half else second + i - half
            row_sums = sums + 4 * PANEL_WIDTH * i
            addend, to = zeros, row_sums
            if is_direct:
                to = out + row * out_stride
                if added != 0:
                    addend = added + row * added_stride
            finish_row(row_sums, scales + 4 * row, channel_scales, corrections, bias, floor, addend, to)
            if not is_direct:
                activate(row_sums, PANEL_WIDTH, activation)
                addend = zeros if added == 0 else added + row * added_stride
                write_row(row_sums, addend, out + row * out_stride, width)
    _release()
