"""What a CPU computes with, as functions for Numba: memory by address, vectors, whole products of them, atomics.

Numba compiles loops well, but it has no vectors and no registers to hold a tile of a product in. So what most of the
time goes into is written here in LLVM's own instructions, for the width of this machine's vectors. Everything takes
addresses, in bytes; whoever calls keeps the memory. Knows nothing of what is computed.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
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
_VECTORS = 4 if _HAS_512 else 2
# Columns of a panel, in which products' weights stand: those of one tile.
COLUMNS = LANES * _VECTORS
# The most rows of a tile: with all its sums in registers, some are left for weights.
ROWS = 6
# Whether there is one instruction for four products of bytes, summed exactly in 32 bits.
HAS_BYTES = (_FEATURES.get("avx512vnni", False) and _HAS_512) or (not _HAS_512 and _FEATURES.get("avxvnni", False))
IS_SUPPORTED = _FEATURES.get("avx2", False) and _FEATURES.get("fma", False)

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _at(builder: ir.IRBuilder, address: Any, type_: ir.Type, offset: int = 0) -> Any:
    """A pointer to what stands some bytes behind an address."""
    place = builder.add(address, _number(offset)) if offset else address
    return builder.inttoptr(place, type_.as_pointer())


def _broadcast(builder: ir.IRBuilder, value: Any, vector: ir.VectorType) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    places = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), places)


def _fused(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """A * b + c, rounded once."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


def _bytes_added(builder: ir.IRBuilder, sums: Any, unsigned: Any, signed: Any) -> Any:
    """To each of the sums, four products of bytes."""
    taken = _INTS if llvm.llvm_version_info[0] < 22 else ir.VectorType(_I8, 4 * LANES)
    name = f"llvm.x86.avx512.vpdpbusd.{LANES * 32}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_INTS, [_INTS, taken, taken]), name)
    return builder.call(function, [sums, builder.bitcast(unsigned, taken), builder.bitcast(signed, taken)])


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
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.int32), codegen


# ---- products -------------------------------------------------------------------------------------------------------
#
# A tile is some rows by the columns of a panel. A panel has, for each place of the inner axis (for bytes: for four of
# them), the weights of all its columns side by side. Each sum is made in the order of the inner axis, by one addition
# a place, however many rows a tile has: so a row's numbers do not depend on its neighbours. What follows is multiplied
# and added one by one, since a fused multiply-add might be used for some numbers and not for others.


def _loop(builder: ir.IRBuilder, count: Any, carried: Sequence[tuple[Any, Any]], body: Callable[..., list[Any]]) -> Any:
    """Emits a loop of `count` rounds, at least one. Returns what is carried after the last.

    `carried` is the first value and the type of each thing that a round hands to the next; `body` takes the round's
    number and these, and gives what they become.
    """
    before = builder.basic_block
    loop, after = builder.append_basic_block("round"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    number = builder.phi(_I64)
    phis = [builder.phi(type_) for _, type_ in carried]
    made = body(number, *phis)
    following = builder.add(number, _number(1))
    for phi, first, next_ in zip(
        (number, *phis), (_number(0), *(first for first, _ in carried)), (following, *made), strict=True
    ):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return made


def _tile_intrinsic(rows: int, *, of_bytes: bool) -> Any:
    vector = _INTS if of_bytes else _FLOATS
    each = [(row, column) for row in range(rows) for column in range(_VECTORS)]

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
        added,  # noqa: ARG001
        added_stride,  # noqa: ARG001
        out,  # noqa: ARG001
        out_stride,  # noqa: ARG001
    ):
        def codegen(context, builder, signature, arguments):  # noqa: ARG001
            (x, x_stride, panel, places, scales, channels, corrections, bias, added, added_stride, out, out_stride) = (
                arguments
            )

            def vectors_at(address: Any, type_: ir.VectorType, align: int = 4) -> list[Any]:
                return [
                    builder.load(_at(builder, address, type_, 4 * LANES * column), align=align)
                    for column in range(_VECTORS)
                ]

            rows_at = [builder.add(x, builder.mul(x_stride, _number(row))) for row in range(rows)]

            def place(number: Any, weights_at: Any, *sums: Any) -> list[Any]:
                weights = vectors_at(weights_at, vector, 4 * LANES)
                offset = builder.shl(number, _number(2))
                made: list[Any] = []
                for row in range(rows):
                    value = builder.load(_at(builder, builder.add(rows_at[row], offset), vector.element), align=4)
                    value = _broadcast(builder, value, vector)
                    for column in range(_VECTORS):
                        sum_ = sums[row * _VECTORS + column]
                        made.append(
                            _bytes_added(builder, sum_, value, weights[column])
                            if of_bytes
                            else _fused(builder, value, weights[column], sum_)
                        )
                return [builder.add(weights_at, _number(4 * COLUMNS)), *made]

            carried = [(panel, _I64), *((ir.Constant(vector, None), vector) for _ in each)]
            _, *sums = _loop(builder, places, carried, place)

            biases = vectors_at(bias, _FLOATS)
            if of_bytes:
                by_channel, too_much = vectors_at(channels, _FLOATS), vectors_at(corrections, _INTS)
            for row in range(rows):
                to = builder.add(out, builder.mul(out_stride, _number(row)))
                more = vectors_at(builder.add(added, builder.mul(added_stride, _number(row))), _FLOATS)
                if of_bytes:
                    scale = builder.load(_at(builder, scales, _F32, 4 * row), align=4)
                    scale = _broadcast(builder, scale, _FLOATS)
                for column in range(_VECTORS):
                    value = sums[row * _VECTORS + column]
                    if of_bytes:
                        value = builder.sitofp(builder.sub(value, too_much[column]), _FLOATS)
                        value = builder.fmul(builder.fmul(value, by_channel[column]), scale)
                    value = builder.fadd(builder.fadd(value, biases[column]), more[column])
                    builder.store(value, _at(builder, to, _FLOATS, 4 * LANES * column), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), codegen

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
# row's scale; `bias` and what is `added`, COLUMNS numbers for each row, added; to `out`. Bytes are unsigned in x and
# signed in weights, and their `places` are of four.
tile_of_floats = _tile_function(ROWS, of_bytes=False)
tile_of_bytes = _tile_function(ROWS, of_bytes=True) if HAS_BYTES else tile_of_floats


@intrinsic
def add_columns(typingctx, a, b, out):  # noqa: ARG001
    """Adds COLUMNS float32 numbers to as many others."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        for column in range(_VECTORS):
            left, right = (
                builder.load(_at(builder, address, _FLOATS, 4 * LANES * column), align=4) for address in arguments[:2]
            )
            builder.store(builder.fadd(left, right), _at(builder, arguments[2], _FLOATS, 4 * LANES * column), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


# ---- rows of keys and values ----------------------------------------------------------------------------------------


@intrinsic
def dot_of_vectors(typingctx, a, b, vectors):  # noqa: ARG001
    """The sum of products of so many vectors, at least one, at two addresses: float32."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        a, b, vectors = arguments

        def add(number: Any, sums: Any) -> list[Any]:
            offset = builder.mul(number, _number(4 * LANES))
            left, right = (builder.load(_at(builder, builder.add(start, offset), _FLOATS), align=4) for start in (a, b))
            return [_fused(builder, left, right, sums)]

        (sums,) = _loop(builder, vectors, [(ir.Constant(_FLOATS, None), _FLOATS)], add)
        kind = ir.FunctionType(_F32, [_F32, _FLOATS])
        sum_ = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        return builder.call(sum_, [ir.Constant(_F32, -0.0), sums], fastmath=("reassoc",))

    return types.float32(*[types.intp] * 3), codegen


@intrinsic
def prefetch(typingctx, address):  # noqa: ARG001
    """Tells the processor that what is at an address will be read."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, keep, data = ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)
        builder.call(function, [_at(builder, arguments[0], _I8), to_read, keep, data])
        return context.get_dummy_value()

    return types.void(types.intp), codegen


@intrinsic
def max_of_vectors(typingctx, address, vectors):  # noqa: ARG001
    """The greatest number of so many vectors, at least one: float32, NaN where any is."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, vectors = arguments
        kind = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS])
        maximum = cgutils.get_or_insert_function(builder.module, kind, f"llvm.maximum.v{LANES}f32")

        # Several at once: one must wait for the other.
        together = 4
        starts = [builder.load(_at(builder, address, _FLOATS), align=4)] * together
        last = builder.sub(vectors, _number(1))

        def compare(number: Any, *most: Any) -> list[Any]:
            made: list[Any] = []
            for i in range(together):
                place = builder.add(builder.mul(number, _number(together)), _number(i))
                place = builder.select(builder.icmp_signed("<", place, vectors), place, last)
                at = builder.add(address, builder.mul(place, _number(4 * LANES)))
                made.append(builder.call(maximum, [most[i], builder.load(_at(builder, at, _FLOATS), align=4)]))
            return made

        rounds = builder.sdiv(builder.add(vectors, _number(together - 1)), _number(together))
        found = _loop(builder, rounds, [(start, _FLOATS) for start in starts], compare)
        most = found[0]
        for other in found[1:]:
            most = builder.call(maximum, [most, other])
        kind = ir.FunctionType(_F32, [_FLOATS])
        name = f"llvm.vector.reduce.fmaximum.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [most])

    return types.float32(types.intp, types.intp), codegen


def _mix_intrinsic(vectors: int) -> Any:
    @intrinsic
    def mix(typingctx, shares, values, stride, count, out):  # noqa: ARG001
        def codegen(context, builder, signature, arguments):  # noqa: ARG001
            shares, values, stride, count, out = arguments

            def add(number: Any, at: Any, *sums: Any) -> list[Any]:
                share = _at(builder, builder.add(shares, builder.shl(number, _number(2))), _F32)
                share = _broadcast(builder, builder.load(share, align=4), _FLOATS)
                made = [
                    _fused(builder, share, builder.load(_at(builder, at, _FLOATS, 4 * LANES * i), align=4), sums[i])
                    for i in range(vectors)
                ]
                return [builder.add(at, stride), *made]

            carried = [(values, _I64), *[(ir.Constant(_FLOATS, None), _FLOATS)] * vectors]
            _, *sums = _loop(builder, count, carried, add)
            for i in range(vectors):
                builder.store(sums[i], _at(builder, out, _FLOATS, 4 * LANES * i), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), codegen

    return mix


# The sum of `count` (at least one) vectors at `values`, `stride` bytes apart, each times its share; to `out`.
mix_of_four, mix_of_one = _mix_intrinsic(4), _mix_intrinsic(1)


# ---- atomics --------------------------------------------------------------------------------------------------------


@intrinsic
def load_shared(typingctx, address):  # noqa: ARG001
    """The int64 at an address that other threads write; what they wrote before it is seen after."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.load_atomic(_at(builder, arguments[0], _I64), "acquire", 8, typ=_I64)

    return types.int64(types.intp), codegen


@intrinsic
def store_shared(typingctx, address, value):  # noqa: ARG001
    """Writes an int64 for other threads, after all that was written before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        builder.store_atomic(arguments[1], _at(builder, arguments[0], _I64), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), codegen


@intrinsic
def add_shared(typingctx, address, value):  # noqa: ARG001
    """Adds to the int64 at an address, and gives what was there before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.atomic_rmw("add", _at(builder, arguments[0], _I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def exchange_shared(typingctx, address, value):  # noqa: ARG001
    """Writes an int64, and gives what was there before."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        return builder.atomic_rmw("xchg", _at(builder, arguments[0], _I64), arguments[1], "seq_cst")

    return types.int64(types.intp, types.int64), codegen


@intrinsic
def replace_shared(typingctx, address, old, new):  # noqa: ARG001
    """Writes an int64 where the old one still stands. Says whether it did."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, old, new = arguments
        made = builder.cmpxchg(_at(builder, address, _I64), old, new, "seq_cst", "seq_cst")
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
