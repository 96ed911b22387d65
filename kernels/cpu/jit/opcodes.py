"""The fields of a program's operations on a CPU, by number: how `cpu.program` tells the `interpreter` what to do.

An operation is a row of int64 numbers: addresses, strides in bytes, sizes. What changes from one run to the next is in
a row of its own.
"""

from __future__ import annotations

# Numbers of an operation.
FIELDS = 40

# The most positions of a sequence, and numbers of a head, for attention within sequences. Threads have room for them,
# of which only as much is ever touched as there is.
MOST_POSITIONS, MOST_WIDTH = 128, 2048

# Kinds of operations.
PRODUCT, NORMALIZE, QUANTIZE, ATTEND, ATTEND_WITHIN, EMBED, SPREAD, KEEP = range(8)
# Those of a search (see `argmax_ops`): the maxima of panels, and the greatest of each row.
MAXIMA, GREATEST = range(8, 10)

# Fields of all: kind, where rows come from and go to. Strides are from one row to the next.
KIND, X, X_STRIDE, OUT, OUT_STRIDE = range(5)
# Of those that take a row at a time, and of products: how long a row is, or what comes of it.
SIZE = 5
# Of products, and of the layer that a search is among. CHANNELS is 0 where weights are no bytes.
WEIGHT, PLACES, BIAS, ACTIVATION, ADDED, ADDED_STRIDE, SCALES, CHANNELS, CORRECTIONS, TOGETHER = range(6, 16)
# Of norms: WEIGHT and BIAS as above, and a float32's bits.
EPSILON = 7
# Of attention. Keys and values are those of a slot, a head and a position; `STEP` is from one position to the next.
KEYS, KEYS_STRIDE, KEYS_HEAD, KEYS_STEP, VALUES, VALUES_STRIDE, VALUES_HEAD, VALUES_STEP = range(6, 14)
HEADS, VALUE_WIDTH, LENGTHS, NEW_KEY, NEW_VALUE, NEW_STRIDE, SHARES, SHARES_STRIDE, SHARES_HEAD, SCALE = range(14, 24)
IS_OWN, NEW_VALUE_STRIDE = 24, 25
# Heads of queries that share one of keys and values, 0 as 1. Where they are no 0: the position from which each row sees
# its own, int64; what is added to each score, strides of rows and heads; and the bits of what scores are capped with.
GROUP, BEGINS, SCORE_BIAS, SCORE_BIAS_STRIDE, SCORE_BIAS_HEAD, CAP = range(26, 32)
# Of attention within sequences, whose rows stand one after another: fields as above.
# Of embeddings: X is of token ids, int64. The table of tokens and what it is multiplied by, as bits; the table of
# positions, and another one for tokens of one id.
TABLE, TABLE_SCALE, POSITIONS, OTHER_ID, OTHER_POSITIONS, TABLE_ROWS = range(6, 12)
# Of what spreads rows of keys and values over slots: the slot of each sequence, int64. KEYS to LENGTHS as above.
SLOTS = 17
# Of what keeps shares: which rows, int64, where they are some, and of how many heads; shares are at X, a row X_STRIDE
# apart, a head X_HEAD. Of one position, they go to as many columns side by side, each OUT_STEP behind the one before.
KEPT_ROWS, KEPT_HEADS, X_HEAD, OUT_STEP, IS_SOURCE, ARE_SOME = range(6, 12)

# Of a search: of each panel and row, the numbers; of each row and panel, the greatest number; of each row, that and its
# place.
NUMBERS, MAXIMA_OF_PANELS, MOST, TOKENS = range(16, 20)
# What is out of the question, by panels: where each panel's begin, and row and column of each.
OUT_BEGIN, OUT_ROWS, OUT_COLUMNS = range(20, 23)
# With bounds, what scores are made of; of each weight, how long its copy is, and how far it is from that; and, as bits,
# how long and how far any is, what is added to all bounds, and the share of a row's length that rounding adds.
HIDDEN, INNER, WEIGHTS, WEIGHTS_BIAS, NORMS, ERRORS, MOST_NORM, MOST_ERROR, SLACK, ROUNDING = range(23, 33)

# What changes from run to run: how many rows there are, the slot of the first, how many positions of each kind of
# attention are shown, and how many rows make a sequence, 1 where each has a slot of its own.
NOW = 5
COUNT, FIRST, SHOWN_OWN, SHOWN_SOURCE, SEQUENCE = range(NOW)
