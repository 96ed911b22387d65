"""Operations of CPU programs and their fields, by number: what `kernels.cpu` writes and the `interpreter` reads.

An operation is a row of NUM_FIELDS int64 numbers: addresses, strides in bytes, sizes, and the bits of float32 numbers.
Several kinds of operations use the same field for different things. What changes from run to run is in another row.
"""

from __future__ import annotations

NUM_FIELDS = 40

# Limits of ATTEND_SEQUENCES: positions of a sequence, and numbers of a head. Each thread has memory for them, of which
# the operating system provides only what is touched.
MAX_POSITIONS, MAX_HEAD_WIDTH = 128, 2048

# Kinds of operations.
MATMUL, LAYER_NORM, QUANTIZE, ATTEND, ATTEND_SEQUENCES, EMBED, SCATTER_KV, STORE_ROWS, SUM_HEADS = range(9)
# A search (see `argmax_ops`) is two operations: the maxima of panels, then the argmax of each row.
FIND_MAXIMA, FIND_ARGMAX = range(9, 11)

# Fields of all operations: the kind, the input and the output. Strides are from one row to the next.
KIND, X, X_STRIDE, OUT, OUT_STRIDE = range(5)
# Of operations that take row after row: the numbers of a row. Of matrix products: the output features. Of attention:
# the width of a head.
SIZE = 5
# Of matrix products, and of the layer of a search. CHANNEL_SCALES is 0 where weights are float32. ADDED is 0 for
# nothing.
WEIGHT, DEPTH, BIAS, ACTIVATION, ADDED, ADDED_STRIDE, SCALES, CHANNEL_SCALES, CORRECTIONS, PANELS_PER_TASK = range(
    6, 16
)
# Of LAYER_NORM: WEIGHT and BIAS as above, and the bits of a float32.
EPSILON = 7
# Of attention. X_STRIDE, X_HEAD and X_STEP are the bytes to the next slot, head and position of keys or values.
KEYS, KEYS_STRIDE, KEYS_HEAD, KEYS_STEP, VALUES, VALUES_STRIDE, VALUES_HEAD, VALUES_STEP = range(6, 14)
HEADS, VALUE_WIDTH, LENGTHS, NEW_KEY, NEW_VALUE, NEW_KEY_STRIDE = range(14, 20)
PROBABILITIES, PROBABILITIES_STRIDE, PROBABILITIES_HEAD, SCALE = range(20, 24)
HAS_NEW_KV, NEW_VALUE_STRIDE = 24, 25
# Also of ATTEND, each 0 where there is none. GROUP_SIZE: the query heads that share one key head, 0 as 1. FIRST_KEYS:
# the first key that each row sees, int64. SCORE_BIAS: what is added to each score, with strides of rows and heads.
# SOFTCAP: the bits of the cap of scores.
GROUP_SIZE, FIRST_KEYS, SCORE_BIAS, SCORE_BIAS_STRIDE, SCORE_BIAS_HEAD, SOFTCAP = range(26, 32)
# Of ATTEND_SEQUENCES, where the rows of a sequence follow one another: fields as above. LENGTHS are those of the
# sequences, and BEGINS says which row is the first of each, int64; KEY_BEGINS and KEY_LENGTHS say the same of the keys.
# With IS_CAUSAL, a row sees the keys up to its own number. PROBABILITIES is 0 where they are not wanted.
BEGINS, KEY_BEGINS, KEY_LENGTHS, IS_CAUSAL, IS_CROSS_SEQUENCE = 17, 26, 27, 28, 29
# Of EMBED, where X holds token ids, int64: the table of tokens and the bits of its factor, the table of positions, and
# another table of positions for the tokens of one id.
TABLE, TABLE_SCALE, POSITIONS, SPECIAL_ID, SPECIAL_POSITIONS, TABLE_ROWS = range(6, 12)
# Of SCATTER_KV: the slot of each row, and its position there, int64. KEYS to VALUE_WIDTH as above.
SLOTS, ROW_POSITIONS = 16, 17
# Of STORE_ROWS. ROW_INDEX: which rows are stored, int64, where HAS_ROW_INDEX is 1. X holds probabilities, with X_STRIDE
# from row to row and X_HEAD from head to head. The heads of one position are written side by side, OUT_STEP after the
# position before.
ROW_INDEX, STORED_HEADS, X_HEAD, OUT_STEP, IS_CROSS, HAS_ROW_INDEX = range(6, 12)
# Of SUM_HEADS, which writes STORED_HEADS heads as their weighted sum: fields as above, the numbers of these heads,
# int64, and their factors, float32. With IS_ADDED the sum is added to what is there. LEFT_OUT: the positions that a
# row leaves out, one byte each, with the bytes from one stored row to the next; 0: a row leaves out nothing. SHARES:
# what these positions have taken of all heads, times the bits of a factor, goes there, with a stride.
HEAD_NUMBERS, HEAD_FACTORS, IS_ADDED, LEFT_OUT, LEFT_OUT_STRIDE, SHARES, SHARES_STRIDE, SHARE_FACTOR = range(12, 20)

# Of a search, what it writes: all scores, by panel and row; the greatest score of each panel, by row and panel; of each
# row the greatest score, and its column.
SCORES, PANEL_MAXIMA, ROW_MAX, ROW_ARGMAX = range(16, 20)
# Masked scores, ordered by panel: where the scores of each panel begin, and the row and the column of each score.
MASK_BEGIN, MASK_ROWS, MASK_COLUMNS = range(20, 23)
# With error bounds: what scores are computed from; for each weight the length of its int8 copy and the distance from
# it; and as bits the greatest length, the greatest distance, the slack of all bounds, and what rounding adds as a part
# of a row's length.
HIDDEN, IN_FEATURES, WEIGHTS, WEIGHTS_BIAS, NORMS, ERRORS, MAX_NORM, MAX_ERROR, SLACK, ROUNDING = range(23, 33)

# What changes from run to run: how many rows there are, the slot of the first row, how many positions of self-attention
# and of cross-attention are written, and how many sequences the rows form, where rows form sequences.
NUM_RUN_FIELDS = 5
NUM_ROWS, FIRST_SLOT, NUM_SELF_POSITIONS, NUM_CROSS_POSITIONS, NUM_SEQUENCES = range(NUM_RUN_FIELDS)
