"""Runs the operations of CPU programs: how many tasks an operation has, and how one task is computed.

An operation is a row of fields (see `opcodes`). The interpreter knows tensors by their addresses; who makes a program
keeps the tensors alive.
"""

from __future__ import annotations

import numpy as np

from .argmax_ops import argmax_of_row, maxima_of_panel
from .attention import attend_row, softmax_row
from .isa import PANEL_WIDTH, TILE_ROWS, compiled
from .llvm import bits_to_float, float32_at, int64_at, uint8_at
from .matmul import MATMUL_SCRATCH, multiply, num_panels, panel_address, panel_inputs
from .matmul_vector import NO_FLOOR, tile_float32, zeros_in
from .opcodes import (
    ACTIVATION,
    ADDED,
    ADDED_STRIDE,
    ATTEND,
    ATTEND_SEQUENCES,
    BEGINS,
    BIAS,
    CHANNEL_SCALES,
    EMBED,
    EPSILON,
    FIND_ARGMAX,
    FIND_MAXIMA,
    FIRST_KEYS,
    FIRST_SLOT,
    GROUP_SIZE,
    HAS_NEW_KV,
    HAS_ROW_INDEX,
    HEAD_FACTORS,
    HEAD_NUMBERS,
    HEADS,
    IS_ADDED,
    IS_CAUSAL,
    IS_CROSS,
    IS_CROSS_SEQUENCE,
    KEY_BEGINS,
    KEY_LENGTHS,
    KEYS,
    KEYS_HEAD,
    KEYS_STEP,
    KEYS_STRIDE,
    KIND,
    LAYER_NORM,
    LEFT_OUT,
    LEFT_OUT_STRIDE,
    LENGTHS,
    MATMUL,
    MAX_HEAD_WIDTH,
    MAX_POSITIONS,
    NEW_KEY,
    NEW_KEY_STRIDE,
    NEW_VALUE,
    NEW_VALUE_STRIDE,
    NUM_CROSS_POSITIONS,
    NUM_ROWS,
    NUM_SELF_POSITIONS,
    NUM_SEQUENCES,
    OUT,
    OUT_STEP,
    OUT_STRIDE,
    PANELS_PER_TASK,
    POSITIONS,
    PROBABILITIES,
    PROBABILITIES_HEAD,
    PROBABILITIES_STRIDE,
    QUANTIZE,
    ROW_INDEX,
    ROW_POSITIONS,
    SCALE,
    SCALES,
    SCATTER_KV,
    SCORE_BIAS,
    SCORE_BIAS_HEAD,
    SCORE_BIAS_STRIDE,
    SHARE_FACTOR,
    SHARES,
    SHARES_STRIDE,
    SIZE,
    SLOTS,
    SOFTCAP,
    SPECIAL_ID,
    SPECIAL_POSITIONS,
    STORE_ROWS,
    STORED_HEADS,
    SUM_HEADS,
    TABLE,
    TABLE_ROWS,
    TABLE_SCALE,
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
from .primitives import layer_norm_row, quantize_row

# The rows of one task where each row is computed by itself, and the most heads of queries of one task.
_ROWS_PER_TASK, _HEADS_PER_TASK = 4, 8


@compiled
def num_tasks(operation, run_fields):
    """Returns how many tasks an operation has. Takes the fields of the operation and of the run as arrays."""
    rows = run_fields[NUM_ROWS]
    kind = operation[KIND]
    if kind in (MATMUL, FIND_MAXIMA):
        return (num_panels(operation) + operation[PANELS_PER_TASK] - 1) // operation[PANELS_PER_TASK]
    if kind == FIND_ARGMAX:
        return rows
    if kind == ATTEND:
        heads = _heads_per_task(operation, run_fields)
        return (rows * operation[HEADS] + heads - 1) // heads
    if kind == ATTEND_SEQUENCES:
        return run_fields[NUM_SEQUENCES] * operation[HEADS]
    if kind in (STORE_ROWS, SUM_HEADS) and operation[HAS_ROW_INDEX] != 0:
        rows = operation[SIZE]
    return (rows + _ROWS_PER_TASK - 1) // _ROWS_PER_TASK


@compiled
def _heads_per_task(operation, run_fields):
    """How many heads of queries one task has."""
    return max(1, min(_HEADS_PER_TASK, run_fields[NUM_ROWS] * operation[HEADS] // 8))


@compiled
def task_weights(operation, task):
    """Returns the address of the weights that a task reads first; 0 where it reads none."""
    if operation[KIND] not in (MATMUL, FIND_MAXIMA):
        return 0
    return panel_address(operation, task * operation[PANELS_PER_TASK])


@compiled
def run_task(operation, run_fields, task, scratch, next_weights):
    """Computes a task of an operation.

    `scratch` is the address of SCRATCH numbers that only this thread uses. `next_weights` is the address of the weights
    that this thread reads after the task; 0 where unknown.
    """
    kind = operation[KIND]
    if kind in (MATMUL, FIND_MAXIMA):
        first = task * operation[PANELS_PER_TASK]
        end = min(first + operation[PANELS_PER_TASK], num_panels(operation))
        for panel in range(first, end):
            ahead = panel_address(operation, panel + 1) if panel + 1 < end else next_weights
            if kind == FIND_MAXIMA:
                maxima_of_panel(operation, run_fields[NUM_ROWS], panel, scratch, ahead)
            else:
                _multiply(operation, run_fields[NUM_ROWS], panel, scratch, ahead)
    elif kind == FIND_ARGMAX:
        argmax_of_row(operation, run_fields[NUM_ROWS], task)
    elif kind == ATTEND:
        heads = _heads_per_task(operation, run_fields)
        first = task * heads
        for index in range(first, min(first + heads, run_fields[NUM_ROWS] * operation[HEADS])):
            _attend(operation, run_fields, index // operation[HEADS], index % operation[HEADS])
    elif kind == ATTEND_SEQUENCES:
        _attend_sequence(operation, run_fields, task // operation[HEADS], task % operation[HEADS], scratch)
    else:
        first = task * _ROWS_PER_TASK
        is_indexed = kind in (STORE_ROWS, SUM_HEADS) and operation[HAS_ROW_INDEX] != 0
        end = operation[SIZE] if is_indexed else run_fields[NUM_ROWS]
        for row in range(first, min(first + _ROWS_PER_TASK, end)):
            _compute_row(operation, run_fields, row)


@compiled
def _compute_row(operation, run_fields, row):
    """Computes one row of an operation that takes row after row."""
    kind = operation[KIND]
    x, out = operation[X] + row * operation[X_STRIDE], operation[OUT] + row * operation[OUT_STRIDE]
    if kind == LAYER_NORM:
        epsilon = bits_to_float(np.int32(operation[EPSILON]))
        layer_norm_row(x, operation[SIZE], operation[WEIGHT], operation[BIAS], epsilon, out)
    elif kind == QUANTIZE:
        quantize_row(x, operation[SIZE], out, operation[SCALES] + 4 * row)
    elif kind == EMBED:
        _embed(operation, run_fields, row, int64_at(x, 1)[0], out)
    elif kind == SCATTER_KV:
        _scatter_kv(operation, row, x)
    elif kind == STORE_ROWS:
        _store_row(operation, run_fields, row)
    else:
        _sum_heads(operation, run_fields, row)


@compiled
def _embed(operation, run_fields, row, token, out):
    """Writes the embedding of a token plus the embedding of its position; NaN for a token outside the table."""
    width = operation[SIZE]
    if not 0 <= token < operation[TABLE_ROWS]:
        _fill(out, width, np.float32(np.nan))
        return
    slot = run_fields[FIRST_SLOT] + row
    position = int64_at(operation[LENGTHS], slot + 1)[slot]
    positions = operation[SPECIAL_POSITIONS] if token == operation[SPECIAL_ID] else operation[POSITIONS]
    token_row = float32_at(operation[TABLE] + 4 * width * token, width)
    position_row, to = float32_at(positions + 4 * width * position, width), float32_at(out, width)
    scale = bits_to_float(np.int32(operation[TABLE_SCALE]))
    for i in range(width):
        to[i] = token_row[i] * scale + position_row[i]


@compiled
def _scatter_kv(operation, row, x):
    """Copies the keys and values of all heads of a row to their slot and position."""
    slot = int64_at(operation[SLOTS], row + 1)[row]
    position = int64_at(operation[ROW_POSITIONS], row + 1)[row]
    heads, width, value_width = operation[HEADS], operation[SIZE], operation[VALUE_WIDTH]
    keys = operation[KEYS] + slot * operation[KEYS_STRIDE] + position * operation[KEYS_STEP]
    values = operation[VALUES] + slot * operation[VALUES_STRIDE] + position * operation[VALUES_STEP]
    for head in range(heads):
        _copy(x + 4 * width * head, keys + head * operation[KEYS_HEAD], width)
        from_ = x + 4 * width * heads + 4 * value_width * head
        _copy(from_, values + head * operation[VALUES_HEAD], value_width)


@compiled
def _store_row(operation, run_fields, stored):
    """Writes the probabilities of a row in the layout of a message: positions, then heads."""
    x, num_positions = _stored_probabilities(operation, run_fields, stored)
    heads = operation[STORED_HEADS]
    out = operation[OUT] + stored * operation[OUT_STRIDE]
    for head in range(heads):
        probabilities = float32_at(x + head * operation[X_HEAD], num_positions)
        for position in range(num_positions):
            float32_at(out + position * operation[OUT_STEP], heads)[head] = probabilities[position]


@compiled
def _stored_probabilities(operation, run_fields, stored):
    """Returns the address of the probabilities of a stored row, and how many positions it has."""
    row = stored
    if operation[HAS_ROW_INDEX] != 0:
        row = int64_at(operation[ROW_INDEX], stored + 1)[stored]
    num_positions = run_fields[NUM_CROSS_POSITIONS] if operation[IS_CROSS] != 0 else run_fields[NUM_SELF_POSITIONS]
    return operation[X] + row * operation[X_STRIDE], num_positions


@compiled
def _sum_heads(operation, run_fields, stored):
    """Writes the weighted sum of heads of a row. Each head is divided by the sum of the positions that are kept.

    A row whose positions are all left out is zeros.
    """
    x, num_positions = _stored_probabilities(operation, run_fields, stored)
    heads = operation[STORED_HEADS]
    numbers, factors = int64_at(operation[HEAD_NUMBERS], heads), float32_at(operation[HEAD_FACTORS], heads)
    out = operation[OUT] + stored * operation[OUT_STRIDE]
    has_left_out = operation[LEFT_OUT] != 0
    left_out = uint8_at(operation[LEFT_OUT] + stored * operation[LEFT_OUT_STRIDE], num_positions)
    if operation[IS_ADDED] == 0:
        for position in range(num_positions):
            float32_at(out + position * operation[OUT_STEP], 1)[0] = np.float32(0)
    share = 0.0
    for head in range(heads):
        probabilities = float32_at(x + numbers[head] * operation[X_HEAD], num_positions)
        factor = factors[head]
        if has_left_out:
            kept = 0.0  # in float64, as in the kernels' reference
            for position in range(num_positions):
                if left_out[position] != 0:
                    share += probabilities[position]
                else:
                    kept += probabilities[position]
            factor = np.float32(factor / kept) if kept != 0.0 else np.float32(0)
        for position in range(num_positions):
            if not has_left_out or left_out[position] == 0:
                float32_at(out + position * operation[OUT_STEP], 1)[0] += factor * probabilities[position]
    if has_left_out:
        shares = float32_at(operation[SHARES] + stored * operation[SHARES_STRIDE], 1)
        before = shares[0] if operation[IS_ADDED] != 0 else np.float32(0)
        shares[0] = before + np.float32(share * bits_to_float(np.int32(operation[SHARE_FACTOR])))


# The scratch memory of a thread, in numbers: what matrix products need, then the keys and values of one head in panels,
# and the scores of a tile of rows.
SCRATCH = MATMUL_SCRATCH + MAX_POSITIONS * (2 * MAX_HEAD_WIDTH + TILE_ROWS)
_KEY_PANELS = 4 * MATMUL_SCRATCH  # the offset in bytes


@compiled
def _multiply(operation, rows, panel, scratch, ahead):
    """Multiplies all rows by one panel of weights."""
    offset = 4 * PANEL_WIDTH * panel
    added = 0 if operation[ADDED] == 0 else operation[ADDED] + offset
    width = min(PANEL_WIDTH, operation[SIZE] - panel * PANEL_WIDTH)
    multiply(
        operation[CHANNEL_SCALES] != 0,
        rows,
        panel_inputs(operation, panel),
        *(added, operation[ADDED_STRIDE]),
        *(operation[OUT] + offset, operation[OUT_STRIDE], width),
        *(operation[ACTIVATION], scratch, ahead),
    )


@compiled
def _attend(operation, run_fields, row, head):
    """Attends with the query of one row and head. Where the row has a key and value of its own, appends them first."""
    slot = run_fields[FIRST_SLOT] + row
    width, value_width = operation[SIZE], operation[VALUE_WIDTH]
    key_head = head // max(1, operation[GROUP_SIZE])
    keys = operation[KEYS] + slot * operation[KEYS_STRIDE] + key_head * operation[KEYS_HEAD]
    values = operation[VALUES] + slot * operation[VALUES_STRIDE] + key_head * operation[VALUES_HEAD]
    count = int64_at(operation[LENGTHS], slot + 1)[slot]
    num_positions = run_fields[NUM_CROSS_POSITIONS]
    if operation[HAS_NEW_KV] != 0:
        num_positions = run_fields[NUM_SELF_POSITIONS]
        new_key = operation[NEW_KEY] + row * operation[NEW_KEY_STRIDE] + 4 * head * width
        new_value = operation[NEW_VALUE] + row * operation[NEW_VALUE_STRIDE] + 4 * head * value_width
        _copy(new_key, keys + count * operation[KEYS_STEP], width)
        _copy(new_value, values + count * operation[VALUES_STEP], value_width)
        count += 1
    query = operation[X] + row * operation[X_STRIDE] + 4 * head * width
    out = operation[OUT] + row * operation[OUT_STRIDE] + 4 * head * value_width
    probabilities = operation[PROBABILITIES] + row * operation[PROBABILITIES_STRIDE]
    probabilities += head * operation[PROBABILITIES_HEAD]
    begin, bias = 0, operation[SCORE_BIAS]
    if operation[FIRST_KEYS] != 0:
        begin = int64_at(operation[FIRST_KEYS], row + 1)[row]
        _fill(probabilities, begin, np.float32(0))
    if bias != 0:
        bias += row * operation[SCORE_BIAS_STRIDE] + head * operation[SCORE_BIAS_HEAD] + 4 * begin
    attend_row(
        query,
        *(keys + begin * operation[KEYS_STEP], operation[KEYS_STEP], width),
        *(values + begin * operation[VALUES_STEP], operation[VALUES_STEP], value_width),
        *(count - begin, num_positions - begin, bits_to_float(np.int32(operation[SCALE]))),
        *(bias, bits_to_float(np.int32(operation[SOFTCAP])), probabilities + 4 * begin, out),
    )


@compiled
def _attend_sequence(operation, run_fields, sequence, head, scratch):
    """Attends with each row of a sequence over the keys of the sequence, for one head.

    Scores and outputs are matrix products, for which the head's keys and values are copied into panels.
    """
    num_rows = int64_at(operation[LENGTHS], sequence + 1)[sequence]
    first = int64_at(operation[BEGINS], sequence + 1)[sequence]
    count = int64_at(operation[KEY_LENGTHS], sequence + 1)[sequence]
    first_key = int64_at(operation[KEY_BEGINS], sequence + 1)[sequence]
    width, value_width = operation[SIZE], operation[VALUE_WIDTH]
    keys = operation[KEYS] + first_key * operation[KEYS_STEP] + head * operation[KEYS_HEAD]
    values = operation[VALUES] + first_key * operation[VALUES_STEP] + head * operation[VALUES_HEAD]
    # A panel of keys has, for each number of a head, the numbers of all positions. A panel of values has, for each
    # position, all numbers of the head.
    num_key_panels = (count + PANEL_WIDTH - 1) // PANEL_WIDTH
    num_value_panels = (value_width + PANEL_WIDTH - 1) // PANEL_WIDTH
    key_panels = scratch + _KEY_PANELS
    value_panels = key_panels + 4 * PANEL_WIDTH * num_key_panels * width
    scores = value_panels + 4 * PANEL_WIDTH * num_value_panels * count
    scores_stride = 4 * PANEL_WIDTH * num_key_panels
    packed_keys = float32_at(key_panels, PANEL_WIDTH * num_key_panels * width)
    for position in range(count):
        key = float32_at(keys + position * operation[KEYS_STEP], width)
        begin = (position // PANEL_WIDTH) * PANEL_WIDTH * width + position % PANEL_WIDTH
        for i in range(width):
            packed_keys[begin + i * PANEL_WIDTH] = key[i]
    for panel in range(num_value_panels):
        size = min(PANEL_WIDTH, value_width - panel * PANEL_WIDTH)
        for position in range(count):
            from_ = values + position * operation[VALUES_STEP] + 4 * PANEL_WIDTH * panel
            _copy(from_, value_panels + 4 * PANEL_WIDTH * (panel * count + position), size)
    zeros, scale = zeros_in(scratch), bits_to_float(np.int32(operation[SCALE]))
    for row in range(0, num_rows, TILE_ROWS):
        rows = min(TILE_ROWS, num_rows - row)
        query = operation[X] + (first + row) * operation[X_STRIDE] + 4 * head * width
        out = operation[OUT] + (first + row) * operation[OUT_STRIDE] + 4 * head * value_width
        for panel in range(num_key_panels):
            tile_float32(
                rows,
                *(query, operation[X_STRIDE], key_panels + 4 * PANEL_WIDTH * panel * width, width),
                *(zeros, zeros, zeros, zeros, NO_FLOOR, zeros, 0),
                *(scores + 4 * PANEL_WIDTH * panel, scores_stride, key_panels, 0),
            )
        for i in range(rows):
            num_seen = count
            if operation[IS_CAUSAL] != 0:
                num_seen = min(count, row + i + 1)
                _fill(scores + i * scores_stride + 4 * num_seen, count - num_seen, np.float32(0))
            softmax_row(scores + i * scores_stride, num_seen, scale)
            if operation[PROBABILITIES] != 0:
                _keep_probabilities(operation, run_fields, first + row + i, head, scores + i * scores_stride, count)
        for panel in range(num_value_panels):
            size = min(PANEL_WIDTH, value_width - panel * PANEL_WIDTH)
            tile_float32(
                rows,
                *(scores, scores_stride, value_panels + 4 * PANEL_WIDTH * panel * count, count),
                *(zeros, zeros, zeros, zeros, NO_FLOOR, zeros, 0, scratch, 4 * PANEL_WIDTH, key_panels, 0),
            )
            for i in range(rows):
                _copy(scratch + 4 * PANEL_WIDTH * i, out + i * operation[OUT_STRIDE] + 4 * PANEL_WIDTH * panel, size)


@compiled
def _keep_probabilities(operation, run_fields, row, head, scores, count):
    """Copies the probabilities of a row and head, and writes zeros behind them."""
    out = operation[PROBABILITIES] + row * operation[PROBABILITIES_STRIDE] + head * operation[PROBABILITIES_HEAD]
    num_positions = run_fields[NUM_SELF_POSITIONS]
    if operation[IS_CROSS_SEQUENCE] != 0:
        num_positions = run_fields[NUM_CROSS_POSITIONS]
    kept = min(count, num_positions)
    _copy(scores, out, kept)
    _fill(out + 4 * kept, num_positions - kept, np.float32(0))


@compiled
def _fill(to, width, number):
    target = float32_at(to, width)
    for i in range(width):
        target[i] = number


@compiled
def _copy(from_, to, width):
    source, target = float32_at(from_, width), float32_at(to, width)
    for i in range(width):
        target[i] = source[i]
