"""CPU programs: a decoder step, an encoder or an output projection as one list of operations, compiled by Numba.

This package is what the server imports. Importing it compiles nothing, and does not import Numba.

program          `Program`, a list of operations on fixed tensors; `PackedMatmul`
argmax           the greatest score of each row of a linear layer
decode_step      the attention of one step over slots, outside of any program
packed_weights   weights in panels
operations       operations as rows of numbers, and running a table of them
word_links       scores of pairs of words, outside of any program
support          whether programs run on this machine
jit              what Numba compiles
"""

from .argmax import ErrorBounds, LinearArgmax, MaskedColumns, mask_columns
from .decode_step import attend_slots
from .jit.opcodes import MAX_HEAD_WIDTH, MAX_POSITIONS
from .operations import HeadSum, store_rows, sum_heads
from .packed_weights import PackedWeight, pack_weight
from .program import Activation, Attention, PackedMatmul, Program
from .support import is_supported
from .word_links import LexiconRows, ScoreParameters, links_words, score_words, transport

__all__ = [
    "MAX_HEAD_WIDTH",
    "MAX_POSITIONS",
    "Activation",
    "Attention",
    "ErrorBounds",
    "HeadSum",
    "LexiconRows",
    "LinearArgmax",
    "MaskedColumns",
    "PackedMatmul",
    "PackedWeight",
    "Program",
    "ScoreParameters",
    "attend_slots",
    "is_supported",
    "links_words",
    "mask_columns",
    "pack_weight",
    "score_words",
    "store_rows",
    "sum_heads",
    "transport",
]
