"""The greatest score of each row of a linear layer, from scores themselves or from estimates with error bounds.

All rows are multiplied with one panel after another. While the scores of a panel are in the cache, the greatest score
of each row is written down, so that few scores are read again. With error bounds the panels hold an int8 copy of the
weights, and their results are estimates: no score is further from its estimate than its bound. So few columns in few
panels can have the greatest score, and only their scores are computed from the float32 weights.

Of equal scores the first is returned, and NaN counts as the greatest, as in torch.argmax.
"""

from __future__ import annotations

import numpy as np

from .isa import LANES, PANEL_WIDTH, compiled
from .llvm import bits_to_float, float32_at, int64_at, max_of_vectors
from .matmul import multiply, num_panels, panel_inputs
from .opcodes import (
    CHANNEL_SCALES,
    ERRORS,
    HIDDEN,
    IN_FEATURES,
    MASK_BEGIN,
    MASK_COLUMNS,
    MASK_ROWS,
    MAX_ERROR,
    MAX_NORM,
    NORMS,
    PANEL_MAXIMA,
    ROUNDING,
    ROW_ARGMAX,
    ROW_MAX,
    SCALES,
    SCORES,
    SIZE,
    SLACK,
    WEIGHTS,
    WEIGHTS_BIAS,
    X_STRIDE,
    X,
)
from .primitives import NONE, dot, l2_norm, quantization_error

_MASKED, _ZERO = np.float32(-np.inf), np.float32(0)


@compiled
def _scores_address(operation, rows, row, panel):
    """The address of the scores of a row and panel."""
    return operation[SCORES] + 4 * PANEL_WIDTH * (panel * rows + row)


@compiled
def maxima_of_panel(operation, rows, panel, scratch, ahead):
    """Writes the scores of one panel for all rows, minus infinity where masked, and the greatest score of each row."""
    panels = num_panels(operation)
    maxima = float32_at(operation[PANEL_MAXIMA], rows * panels)
    to = _scores_address(operation, rows, 0, panel)
    is_int8, inputs = operation[CHANNEL_SCALES] != 0, panel_inputs(operation, panel)
    multiply(is_int8, rows, inputs, 0, 0, to, 4 * PANEL_WIDTH, PANEL_WIDTH, NONE, scratch, ahead)
    scores = float32_at(to, rows * PANEL_WIDTH)
    for column in range(operation[SIZE] - panel * PANEL_WIDTH, PANEL_WIDTH):  # the padding of the last panel
        for i in range(rows):
            scores[i * PANEL_WIDTH + column] = _MASKED
    if operation[MASK_BEGIN] != 0:
        begin = int64_at(operation[MASK_BEGIN], panel + 2)
        end = begin[panel + 1]
        mask_rows, mask_columns = int64_at(operation[MASK_ROWS], end), int64_at(operation[MASK_COLUMNS], end)
        for i in range(begin[panel], end):
            if 0 <= mask_rows[i] < rows:
                scores[mask_rows[i] * PANEL_WIDTH + mask_columns[i]] = _MASKED
    for i in range(rows):
        maxima[i * panels + panel] = max_of_vectors(to + 4 * PANEL_WIDTH * i, PANEL_WIDTH // LANES)


@compiled
def argmax_of_row(operation, rows, row):
    """Writes the column of the greatest score of a row, and the greatest number that `maxima_of_panel` found in it."""
    panels = num_panels(operation)
    maxima = float32_at(operation[PANEL_MAXIMA] + 4 * row * panels, panels)
    panel, maximum = 0, maxima[0]
    for i in range(1, panels):
        if maximum == maximum and not (maxima[i] <= maximum):
            panel, maximum = i, maxima[i]
    scores = float32_at(_scores_address(operation, rows, row, panel), PANEL_WIDTH)
    column = 0
    while column < PANEL_WIDTH - 1 and not (scores[column] == maximum or scores[column] != scores[column]):
        column += 1
    argmax = panel * PANEL_WIDTH + column
    float32_at(operation[ROW_MAX], row + 1)[row] = maximum
    if operation[WEIGHTS] != 0:
        argmax = _exact_argmax(operation, rows, row, argmax, maximum)
    int64_at(operation[ROW_ARGMAX], row + 1)[row] = argmax


@compiled
def _exact_argmax(operation, rows, row, argmax, maximum):
    """The column of the greatest score of a row, given the column of its greatest estimate, and this estimate."""
    panels, in_features = num_panels(operation), operation[IN_FEATURES]
    maxima = float32_at(operation[PANEL_MAXIMA] + 4 * row * panels, panels)
    hidden, quantized = operation[HIDDEN] + 4 * in_features * row, operation[X] + row * operation[X_STRIDE]
    length = l2_norm(hidden, in_features)
    error = quantization_error(hidden, quantized, float32_at(operation[SCALES], row + 1)[row], in_features)
    error += bits_to_float(np.int32(operation[ROUNDING])) * length
    # The greatest score is at least `min_score`, and its estimate at least `min_estimate`.
    min_score = maximum - _bound(operation, argmax, error, length)
    max_bound = bits_to_float(np.int32(operation[MAX_NORM])) * error
    max_bound += bits_to_float(np.int32(operation[MAX_ERROR])) * length
    min_estimate = min_score - (max_bound + bits_to_float(np.int32(operation[SLACK])))
    best_score, best_column = _MASKED, np.int64(-1)
    for panel in range(panels):
        # Comparisons with NaN are false. A masked score is never the greatest.
        if not (maxima[panel] >= min_estimate and maxima[panel] > _MASKED):
            continue
        estimates = float32_at(_scores_address(operation, rows, row, panel), PANEL_WIDTH)
        for i in range(PANEL_WIDTH):
            estimate, column = estimates[i], panel * PANEL_WIDTH + i
            if not (estimate >= min_estimate and estimate > _MASKED):
                continue
            if estimate + _bound(operation, column, error, length) >= min_score:
                score = _score(operation, row, column)
                if score > best_score or best_column < 0:
                    best_score, best_column = score, np.int64(column)
    return best_column if best_column >= 0 else np.int64(argmax)


@compiled
def _bound(operation, column, error, length):
    """The greatest possible distance of a score from its estimate."""
    norms, errors = float32_at(operation[NORMS], column + 1), float32_at(operation[ERRORS], column + 1)
    return norms[column] * error + errors[column] * length + bits_to_float(np.int32(operation[SLACK]))


@compiled
def _score(operation, row, column):
    """A score, from the float32 weights."""
    width = operation[IN_FEATURES]
    score = dot(operation[HIDDEN] + 4 * width * row, operation[WEIGHTS] + 4 * width * column, width)
    bias = operation[WEIGHTS_BIAS]
    return score + (float32_at(bias, column + 1)[column] if bias != 0 else _ZERO)
