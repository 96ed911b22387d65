"""Chooses how the rows of an operation are multiplied with a panel of weights: by vectors, or by AMX.

Both ways give the same bits.
"""

from __future__ import annotations

from .isa import HAS_AMX, PANEL_WIDTH, compiled
from .matmul_vector import TILE_SCRATCH, multiply_vector
from .opcodes import BIAS, CHANNEL_SCALES, CORRECTIONS, DEPTH, SCALES, SIZE, WEIGHT, X_STRIDE, X

if HAS_AMX:
    # Elsewhere the compiler has no such instructions.
    from .matmul_amx import AMX_SCRATCH, can_use_amx, multiply_amx

    MATMUL_SCRATCH = TILE_SCRATCH + AMX_SCRATCH

    @compiled
    def multiply(is_int8, rows, inputs, *rest):
        """Does what `multiply_vector` does. `scratch` has MATMUL_SCRATCH numbers."""
        if is_int8 and can_use_amx(rows, inputs[3]):
            multiply_amx(rows, inputs, *rest)
        else:
            multiply_vector(is_int8, rows, inputs, *rest)

else:
    MATMUL_SCRATCH = TILE_SCRATCH
    multiply = multiply_vector


@compiled
def num_panels(operation):
    """Returns how many panels the weights of an operation have. Takes the fields of the operation as an array."""
    return (operation[SIZE] + PANEL_WIDTH - 1) // PANEL_WIDTH


@compiled
def panel_address(operation, panel):
    """Returns the address of a panel."""
    return operation[WEIGHT] + panel * operation[DEPTH] * 4 * PANEL_WIDTH


@compiled
def panel_inputs(operation, panel):
    """Returns the `inputs` of `multiply`, for the rows of an operation and one panel."""
    offset = 4 * PANEL_WIDTH * panel
    return (
        *(operation[X], operation[X_STRIDE], panel_address(operation, panel), operation[DEPTH], operation[SCALES]),
        *(operation[CHANNEL_SCALES] + offset, operation[CORRECTIONS] + offset, operation[BIAS] + offset),
    )
