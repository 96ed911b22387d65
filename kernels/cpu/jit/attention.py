"""Attention of one query over the keys and values of its sequence, and the softmax of a row.

Rows are short and many. Loops therefore run over vectors, of which the last may be filled in part. The numbers of a row
depend on this row alone, and are added in one order.
"""

from __future__ import annotations

import math
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import LANES, compiled
from .llvm import (
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    const_int64,
    const_vector,
    emit_broadcast,
    emit_fma,
    emit_loop,
    emit_maximum,
    emit_pointer,
    emit_prefetch,
    emit_reduce_maximum,
    emit_reduce_sum,
    float32_at,
)
from .primitives import dot, emit_exp

_BOOLS = ir.VectorType(ir.IntType(1), LANES)
# Keys whose scores are computed at once.
_KEYS = 4


# ---- scores ---------------------------------------------------------------------------------------------------------


@intrinsic
def _scores(typingctx, query, keys, step, vectors, count, out, ahead):
    """Writes the dot products of a query of `vectors` vectors with `count` keys, at least one, `step` bytes apart.

    The memory `ahead` bytes after each key is prefetched.
    """

    def codegen(context, builder, signature, arguments):
        query, keys, step, vectors, count, out, ahead = arguments
        last = builder.sub(count, const_int64(1))

        def score_keys(number: Any) -> list[Any]:
            first = builder.mul(number, const_int64(_KEYS))
            indices = [builder.add(first, const_int64(i)) for i in range(_KEYS)]
            # Beyond the last key, the last key is scored again.
            indices = [builder.select(builder.icmp_signed("<", index, count), index, last) for index in indices]
            addresses = [builder.add(keys, builder.mul(step, index)) for index in indices]

            def add_vector(number: Any, *sums: Any) -> list[Any]:
                offset = builder.mul(number, const_int64(4 * LANES))
                q = builder.load(emit_pointer(builder, builder.add(query, offset), FLOATS), align=4)
                results: list[Any] = []
                for address, sum_ in zip(addresses, sums, strict=True):
                    at = builder.add(address, offset)
                    k = builder.load(emit_pointer(builder, at, FLOATS), align=4)
                    results.append(emit_fma(builder, q, k, sum_))
                    emit_prefetch(builder, builder.add(at, ahead), 1)
                return results

            sums = emit_loop(builder, vectors, [(const_vector(0), FLOATS)] * _KEYS, add_vector)
            scores = _emit_sums(builder, sums)
            for i, index in enumerate(indices):
                to = builder.add(out, builder.mul(index, const_int64(4)))
                score = builder.extract_element(scores, ir.Constant(I32, i))
                builder.store(score, emit_pointer(builder, to, F32), align=4)
            return []

        rounds = builder.sdiv(builder.add(count, const_int64(_KEYS - 1)), const_int64(_KEYS))
        emit_loop(builder, rounds, [], score_keys)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), codegen


def _emit_sums(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    """Emits the sums of four vectors, side by side: neighbours are added, of two vectors at once."""
    while len(vectors) > 1 or vectors[0].type.count > _KEYS:
        results: list[Any] = []
        for left, right in zip(vectors[::2], vectors[1::2] or vectors[::2], strict=True):
            both = left.type.count * (2 if len(vectors) > 1 else 1)
            even, odd = (
                builder.shuffle_vector(
                    left, right, ir.Constant(ir.VectorType(I32, both // 2), [*range(first, both, 2)])
                )
                for first in (0, 1)
            )
            results.append(builder.fadd(even, odd))
        vectors = results
    return vectors[0]


# ---- probabilities --------------------------------------------------------------------------------------------------


def _emit_masked(builder: ir.IRBuilder, name: str, type_: ir.FunctionType, arguments: list[Any]) -> Any:
    """Emits a call of llvm.masked.load or llvm.masked.store. Before LLVM 22 these also take an alignment."""
    if llvm.llvm_version_info[0] < 22:
        index = len(arguments) - (1 if name.endswith("store") else 2)
        arguments = [*arguments[:index], ir.Constant(I32, 4), *arguments[index:]]
        type_ = ir.FunctionType(type_.return_type, [*type_.args[:index], I32, *type_.args[index:]])
    function = cgutils.get_or_insert_function(builder.module, type_, f"llvm.masked.{name}.v{LANES}f32.p0")
    return builder.call(function, arguments)


def _emit_vector_of_row(builder: ir.IRBuilder, address: Any, count: Any, number: Any) -> tuple[Any, Any]:
    """Emits a pointer to a vector of a row, and the mask of the numbers that belong to the row."""
    first = builder.mul(number, const_int64(LANES))
    left = builder.trunc(builder.sub(count, first), I32)
    mask = builder.icmp_signed("<", ir.Constant(INTS, [*range(LANES)]), emit_broadcast(builder, left, INTS))
    return emit_pointer(builder, builder.add(address, builder.mul(first, const_int64(4))), FLOATS), mask


@intrinsic
def softmax_row(typingctx, address, count, scale):
    """Replaces `count` scores, at least one, by the softmax of the scores times a scale."""

    def codegen(context, builder, signature, arguments):
        address, count, scale = arguments
        vectors = builder.sdiv(builder.add(count, const_int64(LANES - 1)), const_int64(LANES))
        scales = emit_broadcast(builder, scale, FLOATS)

        def load(at: Any, mask: Any) -> Any:
            type_ = ir.FunctionType(FLOATS, [at.type, _BOOLS, FLOATS])
            return _emit_masked(builder, "load", type_, [at, mask, const_vector(0)])

        def store(value: Any, at: Any, mask: Any) -> None:
            type_ = ir.FunctionType(ir.VoidType(), [FLOATS, at.type, _BOOLS])
            _emit_masked(builder, "store", type_, [value, at, mask])

        def compare(number: Any, maximum: Any) -> list[Any]:
            at, mask = _emit_vector_of_row(builder, address, count, number)
            # Scaled before they are compared: a scale may be negative.
            value = builder.fmul(load(at, mask), scales)
            return [emit_maximum(builder, maximum, builder.select(mask, value, const_vector(-np.inf)))]

        (maximum,) = emit_loop(builder, vectors, [(const_vector(-np.inf), FLOATS)], compare)
        maximum = emit_broadcast(builder, emit_reduce_maximum(builder, maximum), FLOATS)

        def exponentiate(number: Any, total: Any) -> list[Any]:
            at, mask = _emit_vector_of_row(builder, address, count, number)
            value = builder.fsub(builder.fmul(load(at, mask), scales), maximum)
            value = builder.select(mask, emit_exp(builder, value), const_vector(0))
            store(value, at, mask)
            return [builder.fadd(total, value)]

        (total,) = emit_loop(builder, vectors, [(const_vector(0), FLOATS)], exponentiate)
        total = emit_reduce_sum(builder, total)
        inverse = emit_broadcast(builder, builder.fdiv(ir.Constant(F32, 1.0), total), FLOATS)

        def divide(number: Any) -> list[Any]:
            at, mask = _emit_vector_of_row(builder, address, count, number)
            store(builder.fmul(load(at, mask), inverse), at, mask)
            return []

        emit_loop(builder, vectors, [], divide)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32), codegen


# ---- values ---------------------------------------------------------------------------------------------------------


def _mix_intrinsic(vectors: int) -> Any:
    """Makes an intrinsic that sums `count` values, at least one, each `vectors` vectors times its probability."""

    @intrinsic
    def mix(typingctx, probabilities, values, stride, count, out):
        def codegen(context, builder, signature, arguments):
            probabilities, values, stride, count, out = arguments

            def add(number: Any, at: Any, *sums: Any) -> list[Any]:
                address = builder.add(probabilities, builder.shl(number, const_int64(2)))
                probability = builder.load(emit_pointer(builder, address, F32), align=4)
                probability = emit_broadcast(builder, probability, FLOATS)
                loaded = [
                    builder.load(emit_pointer(builder, at, FLOATS, 4 * LANES * i), align=4) for i in range(vectors)
                ]
                results = [emit_fma(builder, probability, value, sums[i]) for i, value in enumerate(loaded)]
                return [builder.add(at, stride), *results]

            carried = [(values, I64), *[(ir.Constant(FLOATS, None), FLOATS)] * vectors]
            _, *sums = emit_loop(builder, count, carried, add)
            for i in range(vectors):
                builder.store(sums[i], emit_pointer(builder, out, FLOATS, 4 * LANES * i), align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), codegen

    return mix


_mix_four_vectors, _mix_one_vector = _mix_intrinsic(4), _mix_intrinsic(1)


@compiled
def _mix_values(probabilities, values, stride, count, width, out):
    """Writes the sum of `count` values, `stride` bytes apart, each times its probability."""
    done = 0
    while done + 4 * LANES <= width:
        _mix_four_vectors(probabilities, values + 4 * done, stride, count, out + 4 * done)
        done += 4 * LANES
    while done + LANES <= width:
        _mix_one_vector(probabilities, values + 4 * done, stride, count, out + 4 * done)
        done += LANES
    probability, to = float32_at(probabilities, count), float32_at(out, width)
    for i in range(done, width):
        total = np.float32(0)
        for position in range(count):
            total += probability[position] * float32_at(values + position * stride, width)[i]
        to[i] = total


@compiled
def _adjust_scores(score, count, scale, bias, softcap):
    """Scales the scores of a query, adds the bias and applies the soft cap (see `attend_row`)."""
    for position in range(count):
        score[position] *= scale
    if bias != 0:
        biases = float32_at(bias, count)
        for position in range(count):
            score[position] += biases[position]
    if softcap != 0:
        for position in range(count):
            score[position] = softcap * math.tanh(score[position] / softcap)


@compiled
def attend_row(
    query,
    keys,
    keys_step,
    width,
    values,
    values_step,
    value_width,
    count,
    num_positions,
    scale,
    bias,
    softcap,
    probabilities,
    out,
):
    """Attends with one query over `count` keys, at least one: `width` float32 numbers, `keys_step` bytes apart.

    Scores are dot products times `scale`, plus the numbers at `bias` unless `bias` is 0, with a soft cap unless it is
    0. Writes the probabilities, zeros after them up to `num_positions`, and the sum of values times probabilities.
    """
    score = float32_at(probabilities, num_positions)
    if width % LANES == 0:
        # Values are prefetched meanwhile where they stand as keys do: the processor does not foresee these reads.
        ahead = values - keys if keys_step == values_step else 0
        _scores(query, keys, keys_step, width // LANES, count, probabilities, ahead)
    else:
        for position in range(count):
            score[position] = dot(query, keys + keys_step * position, width)
    if bias != 0 or softcap != 0:
        _adjust_scores(score, count, scale, bias, softcap)
        scale = np.float32(1)
    softmax_row(probabilities, count, scale)
    _mix_values(probabilities, values, values_step, count, value_width, out)
    for position in range(count, num_positions):
        score[position] = np.float32(0)
