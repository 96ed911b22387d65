"""Finds the greatest score that a last layer gives each row: of the layer itself, or by estimates and bounds.

The layer's panels are multiplied with all rows, and while their scores are at hand, the greatest of each row and panel
is noted, so that few scores are ever looked at again. With bounds, the panels hold a copy of the weights in int8, and
what they give are estimates: no score is further from its estimate than its bound. So the greatest is one of few, in
few panels, and the scores of these alone are made from the weights themselves.

Of equal numbers the first is found, and NaN is above all, as argmax has it. Operations as in `interpreter`, in
their order: the maxima of panels, then what is the greatest of each row.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import numpy as np

from .isa import COLUMNS, LANES, compiled, float_of, floats, longs, max_of_vectors
from .matmul import layer_of, multiply, panels_of
from .opcodes import (
    CHANNELS,
    ERRORS,
    HIDDEN,
    INNER,
    MAXIMA_OF_PANELS,
    MOST,
    MOST_ERROR,
    MOST_NORM,
    NORMS,
    NUMBERS,
    OUT_BEGIN,
    OUT_COLUMNS,
    OUT_ROWS,
    ROUNDING,
    SCALES,
    SIZE,
    SLACK,
    TOKENS,
    WEIGHTS,
    WEIGHTS_BIAS,
    X_STRIDE,
    X,
)
from .primitives import NONE, distance_from_bytes, dot, length_of

_NEVER, _ZERO = np.float32(-np.inf), np.float32(0)


@compiled
def _numbers(operation, count, row, panel):
    """Where the numbers of a row and panel are."""
    return operation[NUMBERS] + 4 * COLUMNS * (panel * count + row)


@compiled
def maxima_of_panel(operation, count, panel, scratch, ahead):
    """The numbers of a panel for each row, minus infinity what is out of the question, and the greatest of them."""
    panels = panels_of(operation)
    maxima = floats(operation[MAXIMA_OF_PANELS], count * panels)
    to = _numbers(operation, count, 0, panel)
    of_bytes, layer = operation[CHANNELS] != 0, layer_of(operation, panel)
    multiply(of_bytes, count, layer, 0, 0, to, 4 * COLUMNS, COLUMNS, NONE, scratch, ahead)
    numbers = floats(to, count * COLUMNS)
    for column in range(operation[SIZE] - panel * COLUMNS, COLUMNS):  # beyond the last
        for i in range(count):
            numbers[i * COLUMNS + column] = _NEVER
    if operation[OUT_BEGIN] != 0:
        begin = longs(operation[OUT_BEGIN], panel + 2)
        end = begin[panel + 1]
        out_rows, out_columns = longs(operation[OUT_ROWS], end), longs(operation[OUT_COLUMNS], end)
        for i in range(begin[panel], end):
            if 0 <= out_rows[i] < count:
                numbers[out_rows[i] * COLUMNS + out_columns[i]] = _NEVER
    for i in range(count):
        maxima[i * panels + panel] = max_of_vectors(to + 4 * COLUMNS * i, COLUMNS // LANES)


@compiled
def greatest_of_row(operation, count, row):
    """Where the greatest number of a row is; with bounds, where the greatest score is."""
    panels = panels_of(operation)
    maxima = floats(operation[MAXIMA_OF_PANELS] + 4 * row * panels, panels)
    panel, most = 0, maxima[0]
    for i in range(1, panels):
        if most == most and not (maxima[i] <= most):
            panel, most = i, maxima[i]
    numbers = floats(_numbers(operation, count, row, panel), COLUMNS)
    column = 0
    while column < COLUMNS - 1 and not (numbers[column] == most or numbers[column] != numbers[column]):
        column += 1
    token = panel * COLUMNS + column
    floats(operation[MOST], row + 1)[row] = most
    if operation[WEIGHTS] != 0:
        token = _best(operation, count, row, token, most)
    longs(operation[TOKENS], row + 1)[row] = token


@compiled
def _best(operation, count, row, token, most):
    """Where the greatest score of a row is, whose greatest estimate is that of a token."""
    panels, inner = panels_of(operation), operation[INNER]
    maxima = floats(operation[MAXIMA_OF_PANELS] + 4 * row * panels, panels)
    hidden, bytes_ = operation[HIDDEN] + 4 * inner * row, operation[X] + row * operation[X_STRIDE]
    length = length_of(hidden, inner)
    off = distance_from_bytes(hidden, bytes_, floats(operation[SCALES], row + 1)[row], inner)
    off += float_of(np.int32(operation[ROUNDING])) * length
    # No score that may be the greatest is below `least`, and no estimate of one below `floor`.
    least = most - _bound(operation, token, off, length)
    reach = float_of(np.int32(operation[MOST_NORM])) * off + float_of(np.int32(operation[MOST_ERROR])) * length
    floor = least - (reach + float_of(np.int32(operation[SLACK])))
    best, best_token = _NEVER, np.int64(-1)
    for panel in range(panels):
        # Where a number is none, no comparison is true. What is out of the question never is the best.
        if not (maxima[panel] >= floor and maxima[panel] > _NEVER):
            continue
        numbers = floats(_numbers(operation, count, row, panel), COLUMNS)
        for column in range(COLUMNS):
            estimate, candidate = numbers[column], panel * COLUMNS + column
            if not (estimate >= floor and estimate > _NEVER):
                continue
            if estimate + _bound(operation, candidate, off, length) >= least:
                score = _score(operation, row, candidate)
                if score > best or best_token < 0:
                    best, best_token = score, np.int64(candidate)
    return best_token if best_token >= 0 else np.int64(token)


@compiled
def _bound(operation, token, off, length):
    """How far a score may be from its estimate."""
    norm, error = floats(operation[NORMS], token + 1)[token], floats(operation[ERRORS], token + 1)[token]
    return norm * off + error * length + float_of(np.int32(operation[SLACK]))


@compiled
def _score(operation, row, token):
    """The score itself."""
    inner = operation[INNER]
    score = dot(operation[HIDDEN] + 4 * inner * row, operation[WEIGHTS] + 4 * inner * token, inner)
    return score + (floats(operation[WEIGHTS_BIAS], token + 1)[token] if operation[WEIGHTS_BIAS] != 0 else _ZERO)
