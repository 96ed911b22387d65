"""Functions of single rows: activations, LayerNorm, quantization, dot products and lengths.

The numbers of a row depend on this row alone, and are added in one order. Functions take addresses and sizes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .isa import LANES, compiled, vectorized
from .llvm import (
    FLOATS,
    INTS,
    bits_to_float,
    const_int64,
    const_vector,
    dot_of_vectors,
    emit_fma,
    emit_loop,
    emit_pointer,
    float32_at,
    int32_at,
    uint8_at,
)

_F = np.float32
_HALF, _ONE, _ZERO = _F(0.5), _F(1.0), _F(0.0)
_MIN_EXPONENT, _MAX_EXPONENT = -87.33, 88.37  # beyond them, exp(x) is no normal float32
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
# Cephes' expf: a polynomial for e^r, |r| <= ln(2) / 2.
_E5, _E4, _E3, _E2 = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2
_E1, _E0 = 1.6666665459e-1, 5.0000001201e-1


def emit_exp(builder: ir.IRBuilder, x: Any) -> Any:
    """Emits exp(x) of each number of a vector, float32: within 2 units in the last place, and never 0."""
    bounded = builder.select(builder.fcmp_ordered(">", x, const_vector(_MIN_EXPONENT)), x, const_vector(_MIN_EXPONENT))
    bounded = builder.select(
        builder.fcmp_ordered("<", bounded, const_vector(_MAX_EXPONENT)), bounded, const_vector(_MAX_EXPONENT)
    )
    type_ = ir.FunctionType(FLOATS, [FLOATS])
    nearest = cgutils.get_or_insert_function(builder.module, type_, f"llvm.rint.v{LANES}f32")
    exponent = builder.call(nearest, [builder.fmul(bounded, const_vector(_LOG2_E))])
    rest = emit_fma(builder, exponent, const_vector(-_LN2_HIGH), bounded)
    rest = emit_fma(builder, exponent, const_vector(-_LN2_LOW), rest)
    y = const_vector(_E5)
    for factor in (_E4, _E3, _E2, _E1, _E0):
        y = emit_fma(builder, y, rest, const_vector(factor))
    y = emit_fma(builder, builder.fmul(y, rest), rest, builder.fadd(rest, const_vector(1)))
    biased = builder.add(builder.fptosi(exponent, INTS), ir.Constant(INTS, [127] * LANES))
    scale = builder.bitcast(builder.shl(biased, ir.Constant(INTS, [23] * LANES)), FLOATS)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, builder.fmul(y, scale))


# ---- activations ----------------------------------------------------------------------------------------------------

# Activations of matrix products, by number.
ACTIVATIONS = ("none", "relu", "silu", "gelu")
NONE, RELU, SILU, GELU = range(4)

_INVERSE_ROOT_2 = _F(0.7071067811865476)
# erf(x) / x on [-4, 4]: a quotient of polynomials in x^2, as in Eigen and XLA.
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
def _erf(x):
    bounded = x if x > -_FAR else -_FAR
    bounded = bounded if bounded < _FAR else _FAR
    square = bounded * bounded
    numerator = (
        (((((_A6 * square + _A5) * square + _A4) * square + _A3) * square + _A2) * square + _A1) * square
    ) + _A0
    denominator = (((_B4 * square + _B3) * square + _B2) * square + _B1) * square + _B0
    y = bounded * numerator / denominator
    return y if x == x else x


@intrinsic
def _silu(typingctx, address, vectors):
    """Applies SiLU in place to `vectors` vectors, at least one."""

    def codegen(context, builder, signature, arguments):
        address, vectors = arguments

        def apply(number: Any) -> list[Any]:
            at = emit_pointer(builder, builder.add(address, builder.mul(number, const_int64(4 * LANES))), FLOATS)
            x = builder.load(at, align=4)
            power = emit_exp(builder, builder.fneg(x))
            builder.store(builder.fdiv(x, builder.fadd(const_vector(1), power)), at, align=4)
            return []

        emit_loop(builder, vectors, [], apply)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@vectorized
def activate(address, count, activation):
    """Applies SILU or GELU in place to float32 numbers, whole vectors of them. Other activations change nothing."""
    x = float32_at(address, count)
    if activation == SILU:
        _silu(address, count // LANES)
    elif activation == GELU:
        for i in range(count):
            x[i] = x[i] * _HALF * (_ONE + _erf(x[i] * _INVERSE_ROOT_2))


# ---- rows -----------------------------------------------------------------------------------------------------------


@vectorized
def layer_norm_row(x_address, width, weight_address, bias_address, epsilon, out_address):
    """Writes the LayerNorm of a row of float32 numbers."""
    x, out = float32_at(x_address, width), float32_at(out_address, width)
    weight, bias = float32_at(weight_address, width), float32_at(bias_address, width)
    total = _ZERO
    for i in range(width):
        total += x[i]
    mean = total / _F(width)
    squares = _ZERO
    for i in range(width):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = _ONE / np.sqrt(squares / _F(width) + _F(epsilon))
    for i in range(width):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


_STEP = _F(1 / 127)
# The bits of a float32 without its sign, and the bits of infinity.
_MAGNITUDE, _INFINITY = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# Added to a number and subtracted again, this leaves the nearest integer, the even one of two.
_ROUNDING = _F(3 << 22)


@compiled  # not vectorized: the same bits everywhere, nothing reordered and nothing fused
def quantize_row(x_address, width, out_address, scale_address):
    """Quantizes a row to -127..127, stored with an offset of 128. The scale maps the greatest magnitude to 127.

    A row with NaN or infinity gets NaN as its scale.
    """
    x, bits, out = float32_at(x_address, width), int32_at(x_address, width), uint8_at(out_address, width)
    # Without signs, the bits have the order of the numbers; infinity and NaN are the greatest.
    maximum = np.int32(0)
    for i in range(width):
        maximum = max(maximum, bits[i] & _MAGNITUDE)
    scale = bits_to_float(maximum) * _STEP if maximum < _INFINITY else _F(np.nan)
    float32_at(scale_address, 1)[0] = scale
    if scale > _ZERO:
        for i in range(width):
            out[i] = np.uint8(np.int32((x[i] / scale + _ROUNDING) - _ROUNDING) + np.int32(128))
    else:
        for i in range(width):
            out[i] = np.uint8(128)


@vectorized
def l2_norm(address, width):
    """Returns the length of a row as a vector."""
    x = float32_at(address, width)
    total = _ZERO
    for i in range(width):
        total += x[i] * x[i]
    return np.sqrt(total)


@vectorized
def quantization_error(address, quantized_address, scale, width):
    """Returns the distance of a row from its quantized copy."""
    x, quantized = float32_at(address, width), uint8_at(quantized_address, width)
    total = _ZERO
    for i in range(width):
        difference = _F(np.int32(quantized[i]) - np.int32(128)) * scale - x[i]
        total += difference * difference
    return np.sqrt(total)


@compiled
def dot(a, b, width):
    """Returns the dot product of two rows."""
    vectors = width // LANES
    total = dot_of_vectors(a, b, vectors) if vectors > 0 else _ZERO
    left, right = float32_at(a, width), float32_at(b, width)
    for i in range(vectors * LANES, width):
        total += left[i] * right[i]
    return total
