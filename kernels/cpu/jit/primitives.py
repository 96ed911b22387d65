"""What a step does between its products, row by row: activations, norms, quantization.

Every row's numbers come from that row alone, in one order. Knows addresses and sizes; knows nothing of models.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import (
    FLOATS,
    INTS,
    LANES,
    compiled,
    constant,
    dot_of_vectors,
    emit_loop,
    float_of,
    floats,
    fused,
    ints,
    pointer,
    unsigned_bytes,
    vector_of,
    vectorized,
)

_F = np.float32
_HALF, _ONE, _NONE = _F(0.5), _F(1.0), _F(0.0)
_LEAST, _MOST = -87.33, 88.37  # beyond, powers of e are no normal float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
# Cephes' expf: a polynomial for e^r, |r| <= ln(2) / 2.
_E5, _E4, _E3, _E2 = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2
_E1, _E0 = 1.6666665459e-1, 5.0000001201e-1


def emit_power(builder: ir.IRBuilder, x: Any) -> Any:
    """E to each number of a vector, float32: within 2 units in the last place, and never 0."""
    bounded = builder.select(builder.fcmp_ordered(">", x, vector_of(_LEAST)), x, vector_of(_LEAST))
    bounded = builder.select(builder.fcmp_ordered("<", bounded, vector_of(_MOST)), bounded, vector_of(_MOST))
    kind = ir.FunctionType(FLOATS, [FLOATS])
    nearest = cgutils.get_or_insert_function(builder.module, kind, f"llvm.rint.v{LANES}f32")
    times = builder.call(nearest, [builder.fmul(bounded, vector_of(_LOG2_E))])
    rest = fused(builder, times, vector_of(-_LN2_HIGH), bounded)
    rest = fused(builder, times, vector_of(-_LN2_LOW), rest)
    y = vector_of(_E5)
    for factor in (_E4, _E3, _E2, _E1, _E0):
        y = fused(builder, y, rest, vector_of(factor))
    y = fused(builder, builder.fmul(y, rest), rest, builder.fadd(rest, vector_of(1)))
    exponent = builder.add(builder.fptosi(times, INTS), ir.Constant(INTS, [127] * LANES))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(INTS, [23] * LANES)), FLOATS)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, builder.fmul(y, scale))


# ---- activations ----------------------------------------------------------------------------------------------------

# By number: what a product's sums go through.
ACTIVATIONS = ("none", "relu", "silu", "gelu")
NONE, RELU, SILU, GELU = range(4)

_INVERSE_ROOT_2 = _F(0.7071067811865476)
# erf(x) / x on [-4, 4], a quotient of polynomials in x^2 (as Eigen and XLA have it).
_A6, _A5, _A4, _A3 = (
    _F(-2.72614225801306e-10),
    _F(2.77068142495902e-08),
    _F(-2.10102402082508e-06),
    _F(-5.69250639462346e-05),
)
_A2, _A1, _A0 = _F(-7.34990630326855e-04), _F(-2.95459980854025e-03), _F(-1.60960333262415e-02)
_B4, _B3, _B2 = _F(-1.45660718464996e-05), _F(-2.13374055278905e-04), _F(-1.68282697438203e-03)
_B1, _B0 = _F(-7.37332916720468e-03), _F(-1.42647390514189e-02)
_FAR = _F(4.0)


@vectorized
def _error_function(x):
    bounded = x if x > -_FAR else -_FAR
    bounded = bounded if bounded < _FAR else _FAR
    square = bounded * bounded
    above = ((((((_A6 * square + _A5) * square + _A4) * square + _A3) * square + _A2) * square + _A1) * square) + _A0
    below = (((_B4 * square + _B3) * square + _B2) * square + _B1) * square + _B0
    y = bounded * above / below
    return y if x == x else x


@intrinsic
def _silu(typingctx, address, vectors):  # noqa: ARG001
    """Of so many vectors, at least one."""

    def codegen(context, builder, signature, arguments):  # noqa: ARG001
        address, vectors = arguments

        def of_one(number: Any) -> list[Any]:
            at = pointer(builder, builder.add(address, builder.mul(number, constant(4 * LANES))), FLOATS)
            x = builder.load(at, align=4)
            power = emit_power(builder, builder.fneg(x))
            builder.store(builder.fdiv(x, builder.fadd(vector_of(1), power)), at, align=4)
            return []

        emit_loop(builder, vectors, [], of_one)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@vectorized
def activate(address, count, activation):
    """Takes float32 numbers, whole vectors of them, through SILU or GELU, where they stand. Others change nothing."""
    x = floats(address, count)
    if activation == SILU:
        _silu(address, count // LANES)
    elif activation == GELU:
        for i in range(count):
            x[i] = x[i] * _HALF * (_ONE + _error_function(x[i] * _INVERSE_ROOT_2))


# ---- rows -----------------------------------------------------------------------------------------------------------


@vectorized
def normalize_row(x_address, width, weight_address, bias_address, epsilon, out_address):
    """LayerNorm of a row of float32 numbers."""
    x, out = floats(x_address, width), floats(out_address, width)
    weight, bias = floats(weight_address, width), floats(bias_address, width)
    total = _NONE
    for i in range(width):
        total += x[i]
    mean = total / _F(width)
    squares = _NONE
    for i in range(width):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = _ONE / np.sqrt(squares / _F(width) + _F(epsilon))
    for i in range(width):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


_LEVEL = _F(1 / 127)
_SIZE, _FINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# Added and taken away again, it leaves the nearest whole number, of two the even one.
_ROUNDING = _F(3 << 22)


@compiled  # to the bit: no other order, and nothing fused
def quantize_row(x_address, width, out_address, scale_address):
    """A row in bytes that stand for -127 to 127, 128 above; the scale is that of its greatest number.

    A row of which any number is none, or infinite, gets NaN as its scale.
    """
    x, bits, out = floats(x_address, width), ints(x_address, width), unsigned_bytes(out_address, width)
    # Without their signs, numbers and their bits are in the same order; above all stand infinity and NaN.
    most = np.int32(0)
    for i in range(width):
        most = max(most, bits[i] & _SIZE)
    scale = float_of(most) * _LEVEL if most < _FINITE else _F(np.nan)
    floats(scale_address, 1)[0] = scale
    if scale > _NONE:
        for i in range(width):
            out[i] = np.uint8(np.int32((x[i] / scale + _ROUNDING) - _ROUNDING) + np.int32(128))
    else:
        for i in range(width):
            out[i] = np.uint8(128)


@vectorized
def length_of(address, width):
    """The length of a row."""
    x = floats(address, width)
    total = _NONE
    for i in range(width):
        total += x[i] * x[i]
    return np.sqrt(total)


@vectorized
def distance_from_bytes(address, bytes_address, scale, width):
    """How far a row is from what its bytes stand for."""
    x, bytes_ = floats(address, width), unsigned_bytes(bytes_address, width)
    total = _NONE
    for i in range(width):
        apart = _F(np.int32(bytes_[i]) - np.int32(128)) * scale - x[i]
        total += apart * apart
    return np.sqrt(total)


@compiled
def dot(a, b, width):
    """The sum of products of two rows."""
    vectors = width // LANES
    total = dot_of_vectors(a, b, vectors) if vectors > 0 else _NONE
    left, right = floats(a, width), floats(b, width)
    for i in range(vectors * LANES, width):
        total += left[i] * right[i]
    return total
