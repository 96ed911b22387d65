"""Reductions and encodings in Triton, on tiles in registers: folds over heads and layers, bytes, top-k.

`reductions` says what a reduction means, and `encoding_reference` what an encoding means.
"""
# Triton's language is untyped: tests check the kernels' bodies.
# pyright: basic, reportIndexIssue=false, reportMissingTypeStubs=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

# Below the sort key of any number.
MIN_SORT_KEY = tl.constexpr(-(2**63))


@triton.jit
def neutral_element(REDUCTION: tl.constexpr):
    """The number with which a fold of probabilities may start: it changes nothing."""
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
def init_fold(REDUCTION: tl.constexpr, x):
    """Starts a fold with its first number."""
    if REDUCTION == "l2":
        x = x * x
    return x


@triton.jit
def fold(REDUCTION: tl.constexpr, value, x):
    """Adds one more number to a fold."""
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
def finish_fold(REDUCTION: tl.constexpr, value, count):
    """Finishes a fold, once all numbers are in it."""
    if REDUCTION == "mean":
        value = value / count
    elif REDUCTION == "l2":
        value = tl.sqrt_rn(value)
    return value


@triton.jit
def fold_layers(
    OVER_HEADS: tl.constexpr,
    OVER_LAYERS: tl.constexpr,
    POOLS_ALL_HEADS: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    spec,
    value,  # the fold of a layer's heads, not finished
    accumulator,  # addresses of the fold of the layers before; not read in the first layer
    inside,  # where there are such addresses
):
    """Finishes the fold of a layer's heads, and adds it to the fold of the layers before."""
    before = value
    if not FIRST:
        before = tl.load(accumulator, mask=inside, other=0.0)
    if POOLS_ALL_HEADS:  # two parts of one fold, neither finished: sums of squares are added, not squared again
        if not FIRST:
            value = fold("sum" if OVER_HEADS == "l2" else OVER_HEADS, before, value)
        if LAST:
            value = finish_fold(OVER_HEADS, value, spec.divisor)
    else:
        value = finish_fold(OVER_HEADS, value, spec.divisor)
        if OVER_LAYERS != "":
            value = init_fold(OVER_LAYERS, value) if FIRST else fold(OVER_LAYERS, before, value)
            if LAST:
                value = finish_fold(OVER_LAYERS, value, spec.num_layers)
    return value


@triton.jit
def to_byte(x, scale):
    """A number as a byte of a row with a known scale; 0 for numbers below 0."""
    scale = tl.where(scale > 0, scale, 1.0)
    return tl.maximum(tl.minimum(tl.floor(tl.div_rn(x, scale) + 0.5), 255.0), 0.0).to(tl.uint8)


@triton.jit
def byte_scale(row_max):
    """The scale of a row, from its greatest number."""
    return tl.div_rn(row_max, 255.0)


@triton.jit
def sort_key(x, position):
    """A number and its position as one integer: greater for greater numbers, and of equal numbers for lower positions.

    The upper half is the float32. Its bits, as an integer, have the order of numbers from 0 up; below 0 they have the
    opposite order. NaN is above all numbers, or below them, by its sign bit.
    """
    bits = _ordered_bits((x + 0.0).to(tl.int32, bitcast=True)).to(tl.int64)  # -0 becomes 0, which it equals
    return (bits << 32) | (0x7FFFFFFF - position).to(tl.int64)


@triton.jit
def _ordered_bits(bits):
    """Maps the bits of float32 to integers with the order of the numbers, and back: it is its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def sort_key_value(sort_keys):
    """The number of a sort key."""
    return _ordered_bits((sort_keys >> 32).to(tl.int32)).to(tl.float32, bitcast=True)


@triton.jit
def sort_key_position(sort_keys):
    """The position of a sort key, int32."""
    return 0x7FFFFFFF - (sort_keys & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def merge_top_k(sort_keys, tile, ROWS: tl.constexpr, K: tl.constexpr):
    """The K greatest of `sort_keys`, `[ROWS, K]`, and of the keys of a tile, `[ROWS, at least K]`, greatest first."""
    both = tl.join(sort_keys, tl.topk(tile, K))
    return tl.topk(tl.reshape(both, (ROWS, 2 * K)), K)
