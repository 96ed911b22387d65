"""Folding and packing in Triton, shared by the kernels: how numbers become one, and how rows are encoded.

What the reductions mean, `reductions` says; what packing means, `encoding_reference`. Knows tiles in registers, and no
pointers.
"""
# Triton's language is untyped: what the kernel's body does is checked by tests, not by pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUntypedFunctionDecorator=false
# pyright: reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false, reportUnnecessaryComparison=false

import triton
import triton.language as tl

# Below the rank of any number.
NO_RANK = tl.constexpr(-(2**63))


@triton.jit
def neutral(REDUCTION: tl.constexpr):
    """The number that a fold of probabilities may start with: it changes nothing."""
    if REDUCTION == "prod":
        number = 1.0
    elif REDUCTION == "max":
        number = float("-inf")
    elif REDUCTION == "min":
        number = float("inf")
    else:
        number = 0.0
    return number


@triton.jit
def first(REDUCTION: tl.constexpr, x):
    """What a fold starts with where it starts with a number."""
    if REDUCTION == "l2":
        x = x * x
    return x


@triton.jit
def fold(REDUCTION: tl.constexpr, value, x):
    """One more number."""
    if REDUCTION == "mean" or REDUCTION == "sum":
        value += x
    elif REDUCTION == "l2":
        value += x * x
    elif REDUCTION == "prod":
        value *= x
    elif REDUCTION == "max":
        value = tl.maximum(value, x, propagate_nan=tl.PropagateNan.ALL)
    elif REDUCTION == "min":
        value = tl.minimum(value, x, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(REDUCTION == "absmax")
        size = tl.where(value == value, tl.abs(value), 0.0)  # NaN counts as 0
        value = tl.where(tl.abs(x) > size, x, value)  # false for NaN, and on ties
    return value


@triton.jit
def last(REDUCTION: tl.constexpr, value, count):
    """What is left to do once all numbers are in."""
    if REDUCTION == "mean":
        value = value / count
    elif REDUCTION == "l2":
        value = tl.sqrt_rn(value)
    return value


@triton.jit
def fold_layers(
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    AS_ONE: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    value,  # the heads of a layer, folded but not finished
    total,  # what the layers before have become; not looked at if this is the first
    heads,  # what a mean over heads is divided by
    layers,  # what a mean over layers is divided by
):
    """Finishes a layer's heads and folds them into what the layers before have become."""
    if AS_ONE:  # two lots of one fold, neither finished: sums of squares are added, not squared again
        if not FIRST:
            value = fold("sum" if OVER_HEADS == "l2" else OVER_HEADS, total, value)
        if LAST:
            value = last(OVER_HEADS, value, heads)
    else:
        value = last(OVER_HEADS, value, heads)
        if OVER_LAYERS != "":
            value = first(OVER_LAYERS, value) if FIRST else fold(OVER_LAYERS, total, value)
            if LAST:
                value = last(OVER_LAYERS, value, layers)
    return value


@triton.jit
def byte_of(x, scale):
    """A number as a byte of a row whose scale is known; 0 for what is below 0."""
    scale = tl.where(scale > 0, scale, 1.0)
    return tl.maximum(tl.minimum(tl.floor(tl.div_rn(x, scale) + 0.5), 255.0), 0.0).to(tl.uint8)


@triton.jit
def scale_of(greatest):
    """A row's scale, by its greatest number."""
    return tl.div_rn(greatest, 255.0)


@triton.jit
def rank(x, position):
    """A number and its position as one integer, so that greater numbers, and of equals lower positions, are greater.

    Float32 in the upper half. Its bits, as an integer, order as numbers do from 0 up; below, the other way round.
    NaN is above all numbers, or below them, by its sign bit.
    """
    bits = _ordered((x + 0.0).to(tl.int32, bitcast=True)).to(tl.int64)  # -0 becomes 0, which it equals
    return (bits << 32) | (0x7FFFFFFF - position).to(tl.int64)


@triton.jit
def _ordered(bits):
    """The bits of float32 so that they order as the numbers do; and back, for it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def ranked_number(ranks):
    """The number of a rank."""
    return _ordered((ranks >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def ranked_position(ranks):
    """The position of a rank, int32."""
    return 0x7FFFFFFF - (ranks & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def best(ranks, tile, ROWS: tl.constexpr, K: tl.constexpr):
    """The K greatest of `ranks`, `[ROWS, K]`, and of a tile of more, `[ROWS, at least K]`, greatest first."""
    both = tl.join(ranks, tl.topk(tile, K))
    return tl.topk(tl.reshape(both, (ROWS, 2 * K)), K)
