"""One query over the keys and values of its sequence; and rows of scores, which become shares.

Short rows, and many of them: so loops are written in vectors, the last of which may be a part of one. Every row's
numbers come from that row alone, in one order.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import math
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import (
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    broadcast,
    compiled,
    constant,
    emit_loop,
    emit_prefetch,
    floats,
    fused,
    pointer,
    vector_of,
)
from .primitives import dot, emit_power

_BOOLEANS = ir.VectorType(ir.IntType(1), LANES)
# Keys whose scores are made at once.
_KEYS = 4


# ---- scores ---------------------------------------------------------------------------------------------------------


@intrinsic
def _scores(typingctx, query, keys, step, vectors, count, out, ahead):  # noqa: ARG001
    """The product of a query, of so many vectors, with each of `count` keys, at least one, `step` bytes apart.

    To `out`. What stands `ahead` bytes behind each key is fetched.
    """

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        query, keys, step, vectors, count, out, ahead = arguments
        last = builder.sub(count, constant(1))

        def some_keys(number: Any) -> list[Any]:
            first = builder.mul(number, constant(_KEYS))
            places = [builder.add(first, constant(i)) for i in range(_KEYS)]
            # Behind the last one, it again.
            places = [builder.select(builder.icmp_signed("<", place, count), place, last) for place in places]
            keys_at = [builder.add(keys, builder.mul(step, place)) for place in places]

            def a_vector(number: Any, *sums: Any) -> list[Any]:
                offset = builder.mul(number, constant(4 * LANES))
                part = builder.load(pointer(builder, builder.add(query, offset), FLOATS), align=4)
                made: list[Any] = []
                for key, sum_ in zip(keys_at, sums, strict=True):
                    at = builder.add(key, offset)
                    made.append(fused(builder, part, builder.load(pointer(builder, at, FLOATS), align=4), sum_))
                    emit_prefetch(builder, builder.add(at, ahead), 1)
                return made

            sums = emit_loop(builder, vectors, [(vector_of(0), FLOATS)] * _KEYS, a_vector)
            made = _sums_of(builder, sums)
            for i, place in enumerate(places):
                to = builder.add(out, builder.mul(place, constant(4)))
                value = builder.extract_element(made, ir.Constant(I32, i))
                builder.store(value, pointer(builder, to, F32), align=4)
            return []

        rounds = builder.sdiv(builder.add(count, constant(_KEYS - 1)), constant(_KEYS))
        emit_loop(builder, rounds, [], some_keys)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), codegen


def _sums_of(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """The sum of each of four vectors, side by side: neighbours are added, of two vectors at once."""
    while len(vectors) > 1 or vectors[0].type.count > _KEYS:
        made: list[Any] = []
        for left, right in zip(vectors[::2], vectors[1::2] or vectors[::2], strict=True):
            both = left.type.count * (2 if len(vectors) > 1 else 1)
            even, odd = (
                builder.shuffle_vector(
                    left, right, ir.Constant(ir.VectorType(I32, both // 2), [*range(first, both, 2)])
                )
                for first in (0, 1)
            )
            made.append(builder.fadd(even, odd))
        vectors = made
    return vectors[0]


# ---- shares ---------------------------------------------------------------------------------------------------------


def _masked(builder: ir.IRBuilder, name: str, kind: ir.FunctionType, given: list[Any]) -> Any:
    """A call of an intrinsic that takes a mask, `given` without the alignment that there was before LLVM 22."""
    if llvm.llvm_version_info[0] < 22:
        place = len(given) - (1 if name.endswith("store") else 2)
        given = [*given[:place], ir.Constant(I32, 4), *given[place:]]
        taken = [*kind.args[:place], I32, *kind.args[place:]]
        kind = ir.FunctionType(kind.return_type, taken)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{LANES}f32.p0")
    return builder.call(function, given)


def _place_of(builder: ir.IRBuilder, address: Any, count: Any, number: Any) -> tuple[Any, Any]:
    """Where a vector of a row stands, and which of its numbers the row has."""
    first = builder.mul(number, constant(LANES))
    left = builder.trunc(builder.sub(count, first), I32)
    places = ir.Constant(INTS, [*range(LANES)])
    mask = builder.icmp_signed("<", places, broadcast(builder, left, INTS))
    return pointer(builder, builder.add(address, builder.mul(first, constant(4))), FLOATS), mask


@intrinsic
def share_out(typingctx, address, count, scale):  # noqa: ARG001
    """Scores, at least one, times a scale become shares, where they stand: their softmax."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, count, scale = arguments
        vectors = builder.sdiv(builder.add(count, constant(LANES - 1)), constant(LANES))
        scales = broadcast(builder, scale, FLOATS)
        of_two = ir.FunctionType(FLOATS, [FLOATS, FLOATS])
        maximum = cgutils.get_or_insert_function(builder.module, of_two, f"llvm.maximum.v{LANES}f32")

        def load(at: Any, mask: Any) -> Any:
            kind = ir.FunctionType(FLOATS, [at.type, _BOOLEANS, FLOATS])
            return _masked(builder, "load", kind, [at, mask, vector_of(0)])

        def store(value: Any, at: Any, mask: Any) -> None:
            _masked(builder, "store", ir.FunctionType(ir.VoidType(), [FLOATS, at.type, _BOOLEANS]), [value, at, mask])

        def compare(number: Any, most: Any) -> list[Any]:
            at, mask = _place_of(builder, address, count, number)
            # Scaled first: a scale may be below 0.
            value = builder.fmul(load(at, mask), scales)
            return [builder.call(maximum, [most, builder.select(mask, value, vector_of(-np.inf))])]

        (most,) = emit_loop(builder, vectors, [(vector_of(-np.inf), FLOATS)], compare)
        of_one = ir.FunctionType(F32, [FLOATS])
        name = f"llvm.vector.reduce.fmaximum.v{LANES}f32"
        most = builder.call(cgutils.get_or_insert_function(builder.module, of_one, name), [most])
        most = broadcast(builder, most, FLOATS)

        def to_powers(number: Any, total: Any) -> list[Any]:
            at, mask = _place_of(builder, address, count, number)
            value = builder.fsub(builder.fmul(load(at, mask), scales), most)
            value = builder.select(mask, emit_power(builder, value), vector_of(0))
            store(value, at, mask)
            return [builder.fadd(total, value)]

        (total,) = emit_loop(builder, vectors, [(vector_of(0), FLOATS)], to_powers)
        kind = ir.FunctionType(F32, [F32, FLOATS])
        sum_ = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
        total = builder.call(sum_, [ir.Constant(F32, -0.0), total], fastmath=("reassoc",))
        inverse = broadcast(builder, builder.fdiv(ir.Constant(F32, 1.0), total), FLOATS)

        def divide(number: Any) -> list[Any]:
            at, mask = _place_of(builder, address, count, number)
            store(builder.fmul(load(at, mask), inverse), at, mask)
            return []

        emit_loop(builder, vectors, [], divide)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), codegen


# ---- values ---------------------------------------------------------------------------------------------------------


def _mix_intrinsic(vectors: int) -> Any:
    @intrinsic
    def mix(typingctx, shares, values, stride, count, out):  # noqa: ARG001
        def codegen(context, builder, signature, arguments):  # noqa: ARG001
            shares, values, stride, count, out = arguments

            def add(number: Any, at: Any, *sums: Any) -> list[Any]:
                share = pointer(builder, builder.add(shares, builder.shl(number, constant(2))), F32)
                share = broadcast(builder, builder.load(share, align=4), FLOATS)
                made = [
                    fused(builder, share, builder.load(pointer(builder, at, FLOATS, 4 * LANES * i), align=4), sums[i])
                    for i in range(vectors)
                ]
                return [builder.add(at, stride), *made]

            carried = [(values, I64), *[(ir.Constant(FLOATS, None), FLOATS)] * vectors]
            _, *sums = emit_loop(builder, count, carried, add)
            for i in range(vectors):
                builder.store(sums[i], pointer(builder, out, FLOATS, 4 * LANES * i), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), codegen

    return mix


# The sum of `count` (at least one) vectors at `values`, `stride` bytes apart, each times its share; to `out`.
_mix_of_four, _mix_of_one = _mix_intrinsic(4), _mix_intrinsic(1)


@compiled
def _mix(shares, values, stride, count, width, out):
    """The sum of `count` rows, each times its share."""
    done = 0
    while done + 4 * LANES <= width:
        _mix_of_four(shares, values + 4 * done, stride, count, out + 4 * done)
        done += 4 * LANES
    while done + LANES <= width:
        _mix_of_one(shares, values + 4 * done, stride, count, out + 4 * done)
        done += LANES
    share, to = floats(shares, count), floats(out, width)
    for i in range(done, width):
        total = np.float32(0)
        for place in range(count):
            total += share[place] * floats(values + place * stride, width)[i]
        to[i] = total


@compiled
def _change_scores(score, count, scale, bias, cap):
    """Scales the scores of a query, adds a bias to each and caps them (see `attend_row`)."""
    for place in range(count):
        score[place] *= scale
    if bias != 0:
        more = floats(bias, count)
        for place in range(count):
            score[place] += more[place]
    if cap != 0:
        for place in range(count):
            score[place] = cap * math.tanh(score[place] / cap)


@compiled
def attend_row(
    query, keys, keys_step, width, values, values_step, value_width, count, shown, scale, bias, cap, shares, out
):
    """One query over `count` keys, at least one: `width` float32 numbers, `keys_step` bytes from one to the next.

    Scores are the products times `scale`, plus what stands at `bias` unless that is 0, capped unless `cap` is 0. Their
    shares are written, zeros up to `shown` behind them, and the sum of values by shares.
    """
    score = floats(shares, shown)
    if width % LANES == 0:
        # Values are fetched meanwhile, where they stand as keys do: the processor does not foresee them.
        ahead = values - keys if keys_step == values_step else 0
        _scores(query, keys, keys_step, width // LANES, count, shares, ahead)
    else:
        for place in range(count):
            score[place] = dot(query, keys + keys_step * place, width)
    if bias != 0 or cap != 0:
        _change_scores(score, count, scale, bias, cap)
        scale = np.float32(1)
    share_out(shares, count, scale)
    _mix(shares, values, values_step, count, value_width, out)
    for place in range(count, shown):
        score[place] = np.float32(0)
