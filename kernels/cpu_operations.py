"""The operations of a program on a CPU: what each is told, what pieces it has, and how a piece is done.

An operation is a row of int64 numbers, its fields: addresses, strides in bytes, sizes. What changes from one run to the
next is in a row of its own. Knows tensors by their addresses alone; whoever makes a program keeps them.
"""
# Numba and llvmlite are untyped: what is compiled is checked by tests, not by pyright.
# pyright: basic, reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import numpy as np

from .cpu_functions import NONE, activate, attend_row, normalize_row, quantize_row, share_out
from .cpu_greatest import MAXIMA, search_piece, search_pieces
from .cpu_machine import (
    COLUMNS,
    ROWS,
    add_columns,
    compiled,
    float_of,
    floats,
    longs,
    tile_of_bytes,
    tile_of_floats,
)
from .cpu_program import MOST_POSITIONS, MOST_WIDTH

# Numbers of an operation.
FIELDS = 40

# Kinds of operations.
PRODUCT, PRODUCT_OF_BYTES, NORMALIZE, QUANTIZE, ATTEND, ATTEND_WITHIN, EMBED, SPREAD, KEEP = range(9)

# Fields of all: kind, where rows come from and go to. Strides are from one row to the next.
KIND, X, X_STRIDE, OUT, OUT_STRIDE = range(5)
# Of those that take a row at a time, and of products: how long a row is, or what comes of it.
SIZE = 5
# Of products.
WEIGHT, PLACES, BIAS, ACTIVATION, ADDED, ADDED_STRIDE, SCALES, CHANNELS, CORRECTIONS, TOGETHER = range(6, 16)
# Of norms: WEIGHT and BIAS as above, and a float32's bits.
EPSILON = 7
# Of attention. Keys and values are those of a slot, a head and a position; `STEP` is from one position to the next.
KEYS, KEYS_STRIDE, KEYS_HEAD, KEYS_STEP, VALUES, VALUES_STRIDE, VALUES_HEAD, VALUES_STEP = range(6, 14)
HEADS, VALUE_WIDTH, LENGTHS, NEW_KEY, NEW_VALUE, NEW_STRIDE, SHARES, SHARES_STRIDE, SHARES_HEAD, SCALE = range(14, 24)
IS_OWN, NEW_VALUE_STRIDE = 24, 25
# Of attention within sequences, whose rows stand one after another: fields as above.
# Of embeddings: X is of token ids, int64. The table of tokens and what it is multiplied by, as bits; the table of
# positions, and another one for tokens of one id.
TABLE, TABLE_SCALE, POSITIONS, OTHER_ID, OTHER_POSITIONS, TABLE_ROWS = range(6, 12)
# Of what spreads rows of keys and values over slots: the slot of each sequence, int64. KEYS to LENGTHS as above.
SLOTS = 17
# Of what keeps shares: which rows, int64, where they are some, and of how many heads; shares are at X, a row X_STRIDE
# apart, a head X_HEAD. Of one position, they go to as many columns side by side, each OUT_STEP behind the one before.
KEPT_ROWS, KEPT_HEADS, X_HEAD, OUT_STEP, IS_SOURCE, ARE_SOME = range(6, 12)

# What changes from run to run: how many rows there are, the slot of the first, how many positions of each kind of
# attention are shown, and how many rows make a sequence, 1 where each has a slot of its own.
NOW = 5
COUNT, FIRST, SHOWN_OWN, SHOWN_SOURCE, SEQUENCE = range(NOW)

# Rows that are one piece of work where each is done alone, and queries of heads.
_ROWS_TOGETHER, _HEADS_TOGETHER = 4, 8


@compiled
def pieces_of(operation, now):
    """How many pieces an operation has, fields and what changes given as arrays."""
    count = now[COUNT]
    kind = operation[KIND]
    if kind in (PRODUCT, PRODUCT_OF_BYTES):
        panels = (operation[SIZE] + COLUMNS - 1) // COLUMNS
        return (panels + operation[TOGETHER] - 1) // operation[TOGETHER]
    if kind >= MAXIMA:
        return search_pieces(operation, count)
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
def do_piece(operation, now, piece, scratch):
    """Does a piece of an operation. `scratch` is the address of SCRATCH numbers of this thread's own."""
    kind = operation[KIND]
    if kind in (PRODUCT, PRODUCT_OF_BYTES):
        panels = (operation[SIZE] + COLUMNS - 1) // COLUMNS
        first = piece * operation[TOGETHER]
        for panel in range(first, min(first + operation[TOGETHER], panels)):
            _multiply(operation, now[COUNT], panel, scratch)
    elif kind >= MAXIMA:
        search_piece(operation, now[COUNT], piece, scratch)
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


# What a thread has for itself: a tile, a row of zeros behind it, and room for the keys and values of a head, and for
# the scores of a tile of rows.
SCRATCH = (ROWS + 1) * COLUMNS + MOST_POSITIONS * (2 * MOST_WIDTH + ROWS)
_ZEROS, _ROOM = 4 * ROWS * COLUMNS, 4 * (ROWS + 1) * COLUMNS


@compiled
def _multiply(operation, count, panel, scratch):
    """All rows by one panel of weights: a tile of rows at a time, in tiles about equal."""
    places = operation[PLACES]
    weights = operation[WEIGHT] + panel * places * 4 * COLUMNS
    offset = 4 * panel * COLUMNS
    width = min(COLUMNS, operation[SIZE] - panel * COLUMNS)
    # What can be written where it belongs, is.
    is_plain = width == COLUMNS and operation[ACTIVATION] == NONE
    out, out_stride = scratch, 4 * COLUMNS
    added, added_stride = scratch + _ZEROS, 0
    tiles = (count + ROWS - 1) // ROWS
    row = 0
    for tile in range(tiles):
        rows = (count - row + tiles - tile - 1) // (tiles - tile)
        x = operation[X] + row * operation[X_STRIDE]
        if is_plain:
            out, out_stride = operation[OUT] + row * operation[OUT_STRIDE] + offset, operation[OUT_STRIDE]
            if operation[ADDED] != 0:
                added_stride = operation[ADDED_STRIDE]
                added = operation[ADDED] + row * added_stride + offset
        arguments = (
            *(x, operation[X_STRIDE], weights, places),
            *(operation[SCALES] + 4 * row, operation[CHANNELS] + offset, operation[CORRECTIONS] + offset),
            *(operation[BIAS] + offset, added, added_stride, out, out_stride),
        )
        if operation[KIND] == PRODUCT:
            tile_of_floats(rows, *arguments)
        else:
            tile_of_bytes(rows, *arguments)
        if not is_plain:
            activate(scratch, rows * COLUMNS, operation[ACTIVATION])
            _write(operation, row, rows, offset, width, scratch)
        row += rows


@compiled
def _write(operation, row, rows, offset, width, scratch):
    """Adds what is to be added, and writes a tile to where it belongs."""
    for i in range(rows):
        tile = scratch + 4 * COLUMNS * i
        to = operation[OUT] + (row + i) * operation[OUT_STRIDE] + offset
        added = scratch + _ZEROS
        if operation[ADDED] != 0:
            added = operation[ADDED] + (row + i) * operation[ADDED_STRIDE] + offset
        if width == COLUMNS:
            add_columns(tile, added, to)
        else:
            numbers, more, out = floats(tile, width), floats(added, width), floats(to, width)
            for j in range(width):
                out[j] = numbers[j] + more[j]


@compiled
def _attend(operation, now, row, head):
    """One query of one head. With a key and value of its own, it keeps them first, behind those that are there."""
    slot = now[FIRST] + row
    width, value_width = operation[SIZE], operation[VALUE_WIDTH]
    keys = operation[KEYS] + slot * operation[KEYS_STRIDE] + head * operation[KEYS_HEAD]
    values = operation[VALUES] + slot * operation[VALUES_STRIDE] + head * operation[VALUES_HEAD]
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
    attend_row(
        query,
        *(keys, operation[KEYS_STEP], width),
        *(values, operation[VALUES_STEP], value_width),
        *(count, shown, float_of(np.int32(operation[SCALE])), shares, out),
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
    zeros, scale = scratch + _ZEROS, float_of(np.int32(operation[SCALE]))
    for row in range(0, count, ROWS):
        rows = min(ROWS, count - row)
        query = operation[X] + (first + row) * operation[X_STRIDE] + 4 * head * width
        out = operation[OUT] + (first + row) * operation[OUT_STRIDE] + 4 * head * value_width
        for panel in range(key_panels):
            tile_of_floats(
                rows,
                *(query, operation[X_STRIDE], in_panels + 4 * COLUMNS * panel * width, width),
                *(zeros, zeros, zeros, zeros, zeros, 0, scores + 4 * COLUMNS * panel, scores_stride),
            )
        for i in range(rows):
            share_out(scores + i * scores_stride, count, scale)
        for panel in range(value_panels):
            size = min(COLUMNS, value_width - panel * COLUMNS)
            tile_of_floats(
                rows,
                *(scores, scores_stride, values_in_panels + 4 * COLUMNS * panel * count, count),
                *(zeros, zeros, zeros, zeros, zeros, 0, scratch, 4 * COLUMNS),
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
