"""The operations of a program on a CPU: what pieces each has, and how a piece is done.

An operation is a row of fields (see `opcodes`). Knows tensors by their addresses alone; whoever makes a program
keeps them.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import numpy as np

from .argmax_ops import greatest_of_row, maxima_of_panel
from .attention import attend_row, share_out
from .isa import COLUMNS, ROWS, compiled, float_of, floats, longs
from .matmul import PRODUCT_SCRATCH, layer_of, multiply, panel_of, panels_of
from .matmul_vector import NO_FLOOR, tile_of_floats, zeros_in
from .opcodes import (
    ACTIVATION,
    ADDED,
    ADDED_STRIDE,
    ARE_SOME,
    ATTEND,
    ATTEND_WITHIN,
    BEGINS,
    BIAS,
    CAP,
    CHANNELS,
    COUNT,
    EMBED,
    EPSILON,
    FIRST,
    GREATEST,
    GROUP,
    HEADS,
    IS_OWN,
    IS_SOURCE,
    KEEP,
    KEPT_HEADS,
    KEPT_ROWS,
    KEYS,
    KEYS_HEAD,
    KEYS_STEP,
    KEYS_STRIDE,
    KIND,
    LENGTHS,
    MAXIMA,
    MOST_POSITIONS,
    MOST_WIDTH,
    NEW_KEY,
    NEW_STRIDE,
    NEW_VALUE,
    NEW_VALUE_STRIDE,
    NORMALIZE,
    OTHER_ID,
    OTHER_POSITIONS,
    OUT,
    OUT_STEP,
    OUT_STRIDE,
    POSITIONS,
    PRODUCT,
    QUANTIZE,
    SCALE,
    SCALES,
    SCORE_BIAS,
    SCORE_BIAS_HEAD,
    SCORE_BIAS_STRIDE,
    SEQUENCE,
    SHARES,
    SHARES_HEAD,
    SHARES_STRIDE,
    SHOWN_OWN,
    SHOWN_SOURCE,
    SIZE,
    SLOTS,
    SPREAD,
    TABLE,
    TABLE_ROWS,
    TABLE_SCALE,
    TOGETHER,
    VALUE_WIDTH,
    VALUES,
    VALUES_HEAD,
    VALUES_STEP,
    VALUES_STRIDE,
    WEIGHT,
    X_HEAD,
    X_STRIDE,
    X,
)
from .primitives import normalize_row, quantize_row

# Rows that are one piece of work where each is done alone, and queries of heads.
_ROWS_TOGETHER, _HEADS_TOGETHER = 4, 8


@compiled
def pieces_of(operation, now):
    """How many pieces an operation has, fields and what changes given as arrays."""
    count = now[COUNT]
    kind = operation[KIND]
    if kind in (PRODUCT, MAXIMA):
        return (panels_of(operation) + operation[TOGETHER] - 1) // operation[TOGETHER]
    if kind == GREATEST:
        return count
    if kind == ATTEND:
        return (count * operation[HEADS] + _together(operation, now) - 1) // _together(operation, now)
    if kind == ATTEND_WITHIN:
        return (count // now[SEQUENCE]) * operation[HEADS]
    if kind == KEEP and operation[ARE_SOME] != 0:
        count = operation[SIZE]
    return (count + _ROWS_TOGETHER - 1) // _ROWS_TOGETHER


@compiled
def _together(operation, now):
    """Heads of queries that are one piece."""
    return max(1, min(_HEADS_TOGETHER, now[COUNT] * operation[HEADS] // 8))


@compiled
def weights_of(operation, piece):
    """Where the weights are that a piece reads first; 0 where it reads none."""
    if operation[KIND] not in (PRODUCT, MAXIMA):
        return 0
    return panel_of(operation, piece * operation[TOGETHER])


@compiled
def do_piece(operation, now, piece, scratch, following):
    """Does a piece of an operation.

    `scratch` is the address of SCRATCH numbers of this thread's own, `following` of the weights that it reads next, 0
    where that is not known.
    """
    kind = operation[KIND]
    if kind in (PRODUCT, MAXIMA):
        first = piece * operation[TOGETHER]
        end = min(first + operation[TOGETHER], panels_of(operation))
        for panel in range(first, end):
            ahead = panel_of(operation, panel + 1) if panel + 1 < end else following
            if kind == MAXIMA:
                maxima_of_panel(operation, now[COUNT], panel, scratch, ahead)
            else:
                _multiply(operation, now[COUNT], panel, scratch, ahead)
    elif kind == GREATEST:
        greatest_of_row(operation, now[COUNT], piece)
    elif kind == ATTEND:
        first = piece * _together(operation, now)
        for place in range(first, min(first + _together(operation, now), now[COUNT] * operation[HEADS])):
            _attend(operation, now, place // operation[HEADS], place % operation[HEADS])
    elif kind == ATTEND_WITHIN:
        _attend_within(operation, now, piece // operation[HEADS], piece % operation[HEADS], scratch)
    else:
        first = piece * _ROWS_TOGETHER
        last = operation[SIZE] if kind == KEEP and operation[ARE_SOME] != 0 else now[COUNT]
        for row in range(first, min(first + _ROWS_TOGETHER, last)):
            _do_row(operation, now, row)


@compiled
def _do_row(operation, now, row):
    """What is done to each row by itself."""
    kind = operation[KIND]
    x, out = operation[X] + row * operation[X_STRIDE], operation[OUT] + row * operation[OUT_STRIDE]
    if kind == NORMALIZE:
        epsilon = float_of(np.int32(operation[EPSILON]))
        normalize_row(x, operation[SIZE], operation[WEIGHT], operation[BIAS], epsilon, out)
    elif kind == QUANTIZE:
        quantize_row(x, operation[SIZE], out, operation[SCALES] + 4 * row)
    elif kind == EMBED:
        _embed(operation, now, row, longs(x, 1)[0], out)
    elif kind == SPREAD:
        _spread(operation, now, row, x)
    else:
        _keep_shares(operation, now, row)


@compiled
def _embed(operation, now, row, token, out):
    """A token's row of the table, scaled, and the row of its position; NaN for one that the table does not have."""
    width = operation[SIZE]
    if not 0 <= token < operation[TABLE_ROWS]:
        _fill(out, width, np.float32(np.nan))
        return
    position = longs(operation[LENGTHS], now[FIRST] + row + 1)[now[FIRST] + row]
    positions = operation[OTHER_POSITIONS] if token == operation[OTHER_ID] else operation[POSITIONS]
    of_token = floats(operation[TABLE] + 4 * width * token, width)
    of_position, to = floats(positions + 4 * width * position, width), floats(out, width)
    scale = float_of(np.int32(operation[TABLE_SCALE]))
    for i in range(width):
        to[i] = of_token[i] * scale + of_position[i]


@compiled
def _spread(operation, now, row, x):
    """A row of keys and values of all heads, to the slot and position where they stay."""
    sequence, position = row // now[SEQUENCE], row % now[SEQUENCE]
    if position >= longs(operation[LENGTHS], sequence + 1)[sequence]:
        return
    slot = longs(operation[SLOTS], sequence + 1)[sequence]
    heads, width, value_width = operation[HEADS], operation[SIZE], operation[VALUE_WIDTH]
    keys = operation[KEYS] + slot * operation[KEYS_STRIDE] + position * operation[KEYS_STEP]
    values = operation[VALUES] + slot * operation[VALUES_STRIDE] + position * operation[VALUES_STEP]
    for head in range(heads):
        _copy(x + 4 * width * head, keys + head * operation[KEYS_HEAD], width)
        from_ = x + 4 * width * heads + 4 * value_width * head
        _copy(from_, values + head * operation[VALUES_HEAD], value_width)


@compiled
def _keep_shares(operation, now, kept):
    """The shares of a row as a message has them: positions, then heads."""
    row = kept
    if operation[ARE_SOME] != 0:
        row = longs(operation[KEPT_ROWS], kept + 1)[kept]
    shown, heads = now[SHOWN_SOURCE] if operation[IS_SOURCE] != 0 else now[SHOWN_OWN], operation[KEPT_HEADS]
    out = operation[OUT] + kept * operation[OUT_STRIDE]
    for head in range(heads):
        shares = floats(operation[X] + row * operation[X_STRIDE] + head * operation[X_HEAD], shown)
        for position in range(shown):
            floats(out + position * operation[OUT_STEP], heads)[head] = shares[position]


# What a thread has for itself: what products need, and room for the keys and values of a head, and for the scores of a
# tile of rows.
SCRATCH = PRODUCT_SCRATCH + MOST_POSITIONS * (2 * MOST_WIDTH + ROWS)
_ROOM = 4 * PRODUCT_SCRATCH


@compiled
def _multiply(operation, count, panel, scratch, ahead):
    """All rows by one panel of weights."""
    offset = 4 * COLUMNS * panel
    added = 0 if operation[ADDED] == 0 else operation[ADDED] + offset
    width = min(COLUMNS, operation[SIZE] - panel * COLUMNS)
    multiply(
        operation[CHANNELS] != 0,
        count,
        layer_of(operation, panel),
        *(added, operation[ADDED_STRIDE]),
        *(operation[OUT] + offset, operation[OUT_STRIDE], width),
        *(operation[ACTIVATION], scratch, ahead),
    )


@compiled
def _attend(operation, now, row, head):
    """One query of one head. With a key and value of its own, it keeps them first, behind those that are there."""
    slot = now[FIRST] + row
    width, value_width = operation[SIZE], operation[VALUE_WIDTH]
    shared = head // max(1, operation[GROUP])
    keys = operation[KEYS] + slot * operation[KEYS_STRIDE] + shared * operation[KEYS_HEAD]
    values = operation[VALUES] + slot * operation[VALUES_STRIDE] + shared * operation[VALUES_HEAD]
    count = longs(operation[LENGTHS], slot + 1)[slot]
    shown = now[SHOWN_SOURCE]
    if operation[IS_OWN] != 0:
        shown = now[SHOWN_OWN]
        new_key = operation[NEW_KEY] + row * operation[NEW_STRIDE] + 4 * head * width
        new_value = operation[NEW_VALUE] + row * operation[NEW_VALUE_STRIDE] + 4 * head * value_width
        _copy(new_key, keys + count * operation[KEYS_STEP], width)
        _copy(new_value, values + count * operation[VALUES_STEP], value_width)
        count += 1
    query = operation[X] + row * operation[X_STRIDE] + 4 * head * width
    out = operation[OUT] + row * operation[OUT_STRIDE] + 4 * head * value_width
    shares = operation[SHARES] + row * operation[SHARES_STRIDE] + head * operation[SHARES_HEAD]
    begin, bias = 0, operation[SCORE_BIAS]
    if operation[BEGINS] != 0:
        begin = longs(operation[BEGINS], row + 1)[row]
        _fill(shares, begin, np.float32(0))
    if bias != 0:
        bias += row * operation[SCORE_BIAS_STRIDE] + head * operation[SCORE_BIAS_HEAD] + 4 * begin
    attend_row(
        query,
        *(keys + begin * operation[KEYS_STEP], operation[KEYS_STEP], width),
        *(values + begin * operation[VALUES_STEP], operation[VALUES_STEP], value_width),
        *(count - begin, shown - begin, float_of(np.int32(operation[SCALE]))),
        *(bias, float_of(np.int32(operation[CAP])), shares + 4 * begin, out),
    )


@compiled
def _attend_within(operation, now, sequence, head, scratch):
    """Each row of a sequence over all of that, for one head: as two products, with its keys and values in panels."""
    count, first = longs(operation[LENGTHS], sequence + 1)[sequence], sequence * now[SEQUENCE]
    width, value_width = operation[SIZE], operation[VALUE_WIDTH]
    keys = operation[KEYS] + first * operation[KEYS_STEP] + head * operation[KEYS_HEAD]
    values = operation[VALUES] + first * operation[VALUES_STEP] + head * operation[VALUES_HEAD]
    # Panels of keys: for each number of a head, those of all positions; of values, for each position all numbers.
    key_panels, value_panels = (count + COLUMNS - 1) // COLUMNS, (value_width + COLUMNS - 1) // COLUMNS
    in_panels = scratch + _ROOM
    values_in_panels = in_panels + 4 * COLUMNS * key_panels * width
    scores = values_in_panels + 4 * COLUMNS * value_panels * count
    scores_stride = 4 * COLUMNS * key_panels
    laid_out = floats(in_panels, COLUMNS * key_panels * width)
    for position in range(count):
        key = floats(keys + position * operation[KEYS_STEP], width)
        begin = (position // COLUMNS) * COLUMNS * width + position % COLUMNS
        for i in range(width):
            laid_out[begin + i * COLUMNS] = key[i]
    for panel in range(value_panels):
        size = min(COLUMNS, value_width - panel * COLUMNS)
        for position in range(count):
            from_ = values + position * operation[VALUES_STEP] + 4 * COLUMNS * panel
            _copy(from_, values_in_panels + 4 * COLUMNS * (panel * count + position), size)
    zeros, scale = zeros_in(scratch), float_of(np.int32(operation[SCALE]))
    for row in range(0, count, ROWS):
        rows = min(ROWS, count - row)
        query = operation[X] + (first + row) * operation[X_STRIDE] + 4 * head * width
        out = operation[OUT] + (first + row) * operation[OUT_STRIDE] + 4 * head * value_width
        for panel in range(key_panels):
            tile_of_floats(
                rows,
                *(query, operation[X_STRIDE], in_panels + 4 * COLUMNS * panel * width, width),
                *(zeros, zeros, zeros, zeros, NO_FLOOR, zeros, 0),
                *(scores + 4 * COLUMNS * panel, scores_stride, in_panels, 0),
            )
        for i in range(rows):
            share_out(scores + i * scores_stride, count, scale)
        for panel in range(value_panels):
            size = min(COLUMNS, value_width - panel * COLUMNS)
            tile_of_floats(
                rows,
                *(scores, scores_stride, values_in_panels + 4 * COLUMNS * panel * count, count),
                *(zeros, zeros, zeros, zeros, NO_FLOOR, zeros, 0, scratch, 4 * COLUMNS, in_panels, 0),
            )
            for i in range(rows):
                _copy(scratch + 4 * COLUMNS * i, out + i * operation[OUT_STRIDE] + 4 * COLUMNS * panel, size)


@compiled
def _fill(to, width, number):
    target = floats(to, width)
    for i in range(width):
        target[i] = number


@compiled
def _copy(from_, to, width):
    source, target = floats(from_, width), floats(to, width)
    for i in range(width):
        target[i] = source[i]
