"""What a CPU computes with, as functions for Numba: memory by address, vectors, sums of them, atomics.

Numba compiles loops well, but it has no vectors and no registers to hold sums in. So what much time goes into is
written in LLVM's own instructions, for the width of this machine's vectors. Here is what several such functions share.
Everything takes addresses, in bytes; whoever calls keeps the memory. Knows nothing of what is computed.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

# Without Python's errors, such as for a division by 0, which keep loops from becoming vectors.
_PLAIN: Any = {"error_model": "numpy"}
compiled: Any = njit(**_PLAIN)
# Additions may change their order as well, so that loops become vectors: the same for all rows. NaN and infinity stay.
vectorized: Any = njit(**_PLAIN, fastmath={"reassoc", "contract", "nsz", "arcp"})

_FEATURES: dict[str, bool] = dict(llvm.get_host_cpu_features())
_HAS_512 = _FEATURES.get("avx512f", False) and _FEATURES.get("avx512vl", False)

# Numbers of 32 bits in a vector.
LANES = 16 if _HAS_512 else 8
VECTORS = 4 if _HAS_512 else 2
# Columns of a panel, in which products' weights stand: those of one tile.
COLUMNS = LANES * VECTORS
# The most rows of a tile: with all its sums in registers, some are left for weights.
ROWS = 6
# Whether there is one instruction for four products of bytes, summed exactly in 32 bits.
HAS_BYTES = (_FEATURES.get("avx512vnni", False) and _HAS_512) or (not _HAS_512 and _FEATURES.get("avxvnni", False))
IS_SUPPORTED = _FEATURES.get("avx2", False) and _FEATURES.get("fma", False)


def _ask_for_matrices() -> bool:
    """Asks the kernel for the registers that hold matrices of bytes (AMX), for all threads of this process."""
    if not (_HAS_512 and HAS_BYTES and _FEATURES.get("amx-tile", False) and _FEATURES.get("amx-int8", False)):
        return False
    # As Linux' Documentation/arch/x86/xstate.rst has it: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


# Whether there are registers for 16 rows of 64 bytes, and instructions that multiply them.
HAS_MATRICES = _ask_for_matrices()

I8, I32, I64, F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
FLOATS, INTS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def constant(value: int) -> ir.Constant:
    """An int64."""
    return ir.Constant(I64, value)


def pointer(builder: ir.IRBuilder, address: Any, type_: ir.Type, offset: int = 0) -> Any:
    """A pointer to what stands some bytes behind an address."""
    place = builder.add(address, constant(offset)) if offset else address
    return builder.inttoptr(place, type_.as_pointer())


def broadcast(builder: ir.IRBuilder, value: Any, vector: ir.VectorType) -> Any:
    """A vector of one value."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
    places = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), places)


def vector_of(value: float) -> ir.Constant:
    """A vector of one float32 number."""
    return ir.Constant(FLOATS, [float(np.float32(value))] * LANES)


def fused(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """A * b + c, rounded once."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


def emit_loop(
    builder: ir.IRBuilder, count: Any, carried: Sequence[tuple[Any, Any]], body: Callable[..., list[Any]]
) -> Any:
    """Emits a loop of `count` rounds, at least one. Returns what is carried after the last.

    `carried` is the first value and the type of each thing that a round hands to the next; `body` takes the round's
    number and these, and gives what they become.
    """
    before = builder.basic_block
    loop, after = builder.append_basic_block("round"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(I64)
    phis = [builder.phi(type_) for _, type_ in carried]
    made = body(number, *phis)
    following, end = builder.add(number, constant(1)), builder.basic_block
    for phi, first, next_ in zip(
        (number, *phis), (constant(0), *(first for first, _ in carried)), (following, *made), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, end)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return made


def emit_prefetch(builder: ir.IRBuilder, address: Any, level: int) -> None:
    """Emits word to the processor that what is at an address will be read: into its cache of that level."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, locality, data = ir.Constant(I32, 0), ir.Constant(I32, 4 - level), ir.Constant(I32, 1)
    builder.call(function, [pointer(builder, address, I8), to_read, locality, data])


# ---- memory ---------------------------------------------------------------------------------------------------------


def _array_intrinsic(element: Any) -> Any:
    """What makes an array of so many numbers that are at an address.

    As Numba's carray, but for two things: it is no call, and what is written to it is not taken for dead.
    """
    type_ = types.Array(element, 1, "C")

    @intrinsic
    def array(typingctx, address, count):  # noqa: ARG001
        def codegen(context, builder, signature, arguments):  # noqa: ARG001
            address, count = arguments
            size = context.get_constant(types.intp, element.bitwidth // 8)
            made = context.make_array(type_)(context, builder)
            data = builder.inttoptr(address, context.get_data_type(element).as_pointer())
            populate_array(made, data=data, shape=(count,), strides=(size,), itemsize=size, meminfo=None)
            return made._getvalue()

        return type_(types.intp, types.intp), codegen

    return array


floats, ints, longs = _array_intrinsic(types.float32), _array_intrinsic(types.int32), _array_intrinsic(types.int64)
unsigned_bytes = _array_intrinsic(types.uint8)


@intrinsic
def float_of(typingctx, bits):  # noqa: ARG001
    """The float32 that some bits are."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.bitcast(arguments[0], F32)

    return types.float32(types.int32), codegen


# ---- rows -----------------------------------------------------------------------------------------------------------


@intrinsic
def dot_of_vectors(typingctx, a, b, vectors):  # noqa: ARG001
    """The sum of products of so many vectors, at least one, at two addresses: float32."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        a, b, vectors = arguments

        def add(number: Any, sums: Any) -> list[Any]:
            offset = builder.mul(number, constant(4 * LANES))
            left, right = (
                builder.load(pointer(builder, builder.add(start, offset), FLOATS), align=4) for start in (a, b)
            )
            return [fused(builder, left, right, sums)]

        (sums,) = emit_loop(builder, vectors, [(ir.Constant(FLOATS, None), FLOATS)], add)
        kind = ir.FunctionType(F32, [F32, FLOATS])
        sum_ = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(sum_, [ir.Constant(F32, -0.0), sums], fastmath=("reassoc",))

    return types.float32(*[types.intp] * 3), codegen


@intrinsic
def max_of_vectors(typingctx, address, vectors):  # noqa: ARG001
    """The greatest number of so many vectors, at least one: float32, NaN where any is."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, vectors = arguments
        kind = ir.FunctionType(FLOATS, [FLOATS, FLOATS])
        maximum = cgutils.get_or_insert_function(builder.module, kind, f"llvm.maximum.v{LANES}f32")

        # Several at once: one must wait for the other.
        together = 4
        starts = [builder.load(pointer(builder, address, FLOATS), align=4)] * together
        last = builder.sub(vectors, constant(1))

        def compare(number: Any, *most: Any) -> list[Any]:
            made: list[Any] = []
            for i in range(together):
                place = builder.add(builder.mul(number, constant(together)), constant(i))
                place = builder.select(builder.icmp_signed("<", place, vectors), place, last)
                at = builder.add(address, builder.mul(place, constant(4 * LANES)))
                made.append(builder.call(maximum, [most[i], builder.load(pointer(builder, at, FLOATS), align=4)]))
            return made

        rounds = builder.sdiv(builder.add(vectors, constant(together - 1)), constant(together))
        found = emit_loop(builder, rounds, [(start, FLOATS) for start in starts], compare)
        most = found[0]
        for other in found[1:]:
            most = builder.call(maximum, [most, other])
        kind = ir.FunctionType(F32, [FLOATS])
        name = f"llvm.vector.reduce.fmaximum.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [most])

    return types.float32(types.intp, types.intp), codegen


# ---- atomics --------------------------------------------------------------------------------------------------------


@intrinsic
def load_shared(typingctx, address):  # noqa: ARG001
    """The int64 at an address that other threads write; what they wrote before it is seen after."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.load_atomic(pointer(builder, arguments[0], I64), "acquire", 8, typ=I64)

    return types.int64(types.intp), codegen


@intrinsic
def store_shared(typingctx, address, value):  # noqa: ARG001
    """Writes an int64 for other threads, after all that was written before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        builder.store_atomic(arguments[1], pointer(builder, arguments[0], I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def add_shared(typingctx, address, value):  # noqa: ARG001
    """Adds to the int64 at an address, and gives what was there before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.atomic_rmw("add", pointer(builder, arguments[0], I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def exchange_shared(typingctx, address, value):  # noqa: ARG001
    """Writes an int64, and gives what was there before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.atomic_rmw("xchg", pointer(builder, arguments[0], I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def replace_shared(typingctx, address, old, new):  # noqa: ARG001
    """Writes an int64 where the old one still stands. Says whether it did."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, old, new = arguments
        made = builder.cmpxchg(pointer(builder, address, I64), old, new, "seq_cst", "seq_cst")
        return builder.extract_value(made, 1)

    return types.boolean(types.intp, types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):  # noqa: ARG001
    """Tells the processor that this thread waits awake."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), codegen
