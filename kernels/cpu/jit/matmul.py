"""Products of an operation's rows with panels of its weights, in the way that is fastest for them.

Knows the fields of operations; which way it is, changes no bit.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from .isa import COLUMNS, HAS_MATRICES, compiled
from .matmul_vector import TILE_SCRATCH, multiply_in_tiles
from .opcodes import BIAS, CHANNELS, CORRECTIONS, PLACES, SCALES, SIZE, WEIGHT, X_STRIDE, X

if HAS_MATRICES:
    # Elsewhere there are no such instructions to compile to.
    from .matmul_amx import MATRIX_SCRATCH, multiply_as_matrices, takes_matrices

    PRODUCT_SCRATCH = TILE_SCRATCH + MATRIX_SCRATCH

    @compiled
    def multiply(of_bytes, count, layer, *rest):
        """As `multiply_in_tiles`; `scratch` has PRODUCT_SCRATCH numbers."""
        if of_bytes and takes_matrices(count, layer[3]):
            multiply_as_matrices(count, layer, *rest)
        else:
            multiply_in_tiles(of_bytes, count, layer, *rest)

else:
    PRODUCT_SCRATCH = TILE_SCRATCH
    multiply = multiply_in_tiles


@compiled
def panels_of(operation):
    """How many panels the weights of an operation have, its fields given as an array."""
    return (operation[SIZE] + COLUMNS - 1) // COLUMNS


@compiled
def panel_of(operation, panel):
    """Where a panel stands."""
    return operation[WEIGHT] + panel * operation[PLACES] * 4 * COLUMNS


@compiled
def layer_of(operation, panel):
    """What `multiply` is told of an operation's rows, and of a panel."""
    offset = 4 * COLUMNS * panel
    return (
        *(operation[X], operation[X_STRIDE], panel_of(operation, panel), operation[PLACES], operation[SCALES]),
        *(operation[CHANNELS] + offset, operation[CORRECTIONS] + offset, operation[BIAS] + offset),
    )
