"""LLVM instructions for functions that Numba compiles: vectors, loops, prefetches, arrays at addresses, dot products.

Numba compiles loops well, but it has no vectors, and no registers to keep sums in. The code that takes most of the time
is therefore written in LLVM instructions, for the vectors of this processor. Functions named `emit_…` emit instructions
while a function is compiled; intrinsics are called from compiled functions. All of them take addresses in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from .isa import LANES

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


# ---- emitting -------------------------------------------------------------------------------------------------------


def const_int64(value: int) -> ir.Constant:
    """Returns an int64 constant."""
    return ir.Constant(I64, value)


def const_vector(value: float) -> ir.Constant:
    """Returns a vector whose numbers all are one float32 constant."""
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def emit_pointer(builder: ir.IRBuilder, address: Any, type_: ir.Type, offset: int = 0) -> Any:
    """Emits a pointer to the memory at an address plus an offset in bytes."""
    place = builder.add(address, const_int64(offset)) if offset else address
    return builder.inttoptr(place, type_.as_pointer())


def emit_broadcast(builder: ir.IRBuilder, value: Any, vector: ir.VectorType) -> Any:
    """Emits a vector whose numbers all are one value."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    indices = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), indices)


def emit_fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """Emits a * b + c of vectors, rounded once."""
    type_ = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, type_, f"llvm.fma.v{LANES}f32"), [a, b, c])


def emit_maximum(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """Emits the greater numbers of two vectors; NaN where either is NaN."""
    type_ = ir.FunctionType(FLOATS, [FLOATS, FLOATS])
    maximum = cgutils.get_or_insert_function(builder.module, type_, f"llvm.maximum.v{LANES}f32")
    return builder.call(maximum, [a, b])


def emit_reduce_maximum(builder: ir.IRBuilder, vector: Any) -> Any:
    """Emits the greatest number of a vector; NaN where any is NaN."""
    type_ = ir.FunctionType(F32, [FLOATS])
    name = f"llvm.vector.reduce.fmaximum.v{LANES}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, type_, name), [vector])


def emit_reduce_sum(builder: ir.IRBuilder, vector: Any) -> Any:
    """Emits the sum of the numbers of a vector, in an order that only the processor's vectors decide."""
    type_ = ir.FunctionType(F32, [F32, FLOATS])
    add = cgutils.get_or_insert_function(builder.module, type_, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(add, [ir.Constant(F32, -0.0), vector], fastmath=("reassoc",))


def emit_loop(
    builder: ir.IRBuilder, count: Any, carried: Sequence[tuple[Any, Any]], body: Callable[..., list[Any]]
) -> Any:
    """Emits a loop of `count` rounds, at least one. Returns the carried values after the last round.

    `carried` holds the first value and the type of each value that a round hands to the next round. `body` takes the
    number of the round and the carried values, and returns the new carried values.
    """
    before = builder.basic_block
    loop, after = builder.append_basic_block("round"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(I64)
    phis = [builder.phi(type_) for _, type_ in carried]
    results = body(number, *phis)
    next_number, end = builder.add(number, const_int64(1)), builder.basic_block
    for phi, first, next_ in zip(
        (number, *phis), (const_int64(0), *(first for first, _ in carried)), (next_number, *results), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, end)
    builder.cbranch(builder.icmp_signed("<", next_number, count), loop, after)
    builder.position_at_end(after)
    return results


def emit_prefetch(builder: ir.IRBuilder, address: Any, level: int) -> None:
    """Emits a prefetch of the memory at an address into the processor's cache of a level."""
    type_ = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, type_, "llvm.prefetch.p0")
    read, locality, data = ir.Constant(I32, 0), ir.Constant(I32, 4 - level), ir.Constant(I32, 1)
    builder.call(function, [emit_pointer(builder, address, I8), read, locality, data])


# ---- memory ---------------------------------------------------------------------------------------------------------


def _array_intrinsic(element: Any) -> Any:
    """Makes an intrinsic that returns the array of `count` numbers at an address.

    The intrinsic differs from Numba's carray in two ways: it is no call, and LLVM does not take writes to the array for
    dead.
    """
    type_ = types.Array(element, 1, "C")

    @intrinsic
    def array(typingctx, address, count):
        def codegen(context, builder, signature, arguments):
            address, count = arguments
            size = context.get_constant(types.intp, element.bitwidth // 8)
            array = context.make_array(type_)(context, builder)
            data = builder.inttoptr(address, context.get_data_type(element).as_pointer())
            populate_array(array, data=data, shape=(count,), strides=(size,), itemsize=size, meminfo=None)
            return array._getvalue()

        return type_(types.intp, types.intp), codegen

    return array


float32_at, int32_at, int64_at, uint8_at = map(_array_intrinsic, (types.float32, types.int32, types.int64, types.uint8))


@intrinsic
def bits_to_float(typingctx, bits):
    """Returns the float32 with the given bits."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), codegen


# ---- rows -----------------------------------------------------------------------------------------------------------


@intrinsic
def dot_of_vectors(typingctx, a, b, vectors):
    """Returns the dot product of two rows of `vectors` vectors, at least one: float32."""

    def codegen(context, builder, signature, arguments):
        a, b, vectors = arguments

        def add(number: Any, sums: Any) -> list[Any]:
            offset = builder.mul(number, const_int64(4 * LANES))
            left, right = (
                builder.load(emit_pointer(builder, builder.add(start, offset), FLOATS), align=4) for start in (a, b)
            )
            return [emit_fma(builder, left, right, sums)]

        (sums,) = emit_loop(builder, vectors, [(ir.Constant(FLOATS, None), FLOATS)], add)
        return emit_reduce_sum(builder, sums)

    return types.float32(*[types.intp] * 3), codegen


@intrinsic
def max_of_vectors(typingctx, address, vectors):
    """Returns the greatest number of `vectors` vectors, at least one: float32, NaN where any is NaN."""

    def codegen(context, builder, signature, arguments):
        address, vectors = arguments
        # Several chains at once: within a chain each comparison waits for the comparison before it.
        chains = 4
        starts = [builder.load(emit_pointer(builder, address, FLOATS), align=4)] * chains
        last = builder.sub(vectors, const_int64(1))

        def compare(number: Any, *maxima: Any) -> list[Any]:
            results: list[Any] = []
            for i in range(chains):
                index = builder.add(builder.mul(number, const_int64(chains)), const_int64(i))
                index = builder.select(builder.icmp_signed("<", index, vectors), index, last)
                at = builder.add(address, builder.mul(index, const_int64(4 * LANES)))
                vector = builder.load(emit_pointer(builder, at, FLOATS), align=4)
                results.append(emit_maximum(builder, maxima[i], vector))
            return results

        rounds = builder.sdiv(builder.add(vectors, const_int64(chains - 1)), const_int64(chains))
        maxima = emit_loop(builder, rounds, [(start, FLOATS) for start in starts], compare)
        maximum = maxima[0]
        for other in maxima[1:]:
            maximum = emit_maximum(builder, maximum, other)
        return emit_reduce_maximum(builder, maximum)

    return types.float32(types.intp, types.intp), codegen
