"""Scores of pairs of words, and optimal transport between words, compiled for texts with few words.

For many words NumPy's own loops over vectors are faster.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .support import is_supported

_Matrix = NDArray[np.float32]


class LexiconRows(NamedTuple):
    """The words of a pair of texts in a lexicon.

    `source` and `target` are int32: the number of each word in the lexicon, or -1. The pairs of source word s are
    `targets[firsts[s] : firsts[s + 1]]`, in ascending order, with `scores`, uint8, in 255ths.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    firsts: NDArray[np.int32]
    targets: NDArray[np.int32]
    scores: NDArray[np.uint8]


class ScoreParameters(NamedTuple):
    """How scores are made.

    Attributes:
        numbers: float32: the weights of attention, lexicon and spelling; what is added to attention and to a number of
            the lexicon; the smallest sum that is divided by; and 1 where the score is the attention alone, else 0.
        renormalizes: Whether special tokens are left out of each row.
    """

    numbers: _Matrix
    renormalizes: bool


_NO_NUMBERS = np.empty(0, np.int32)
_NO_LEXICON = LexiconRows(_NO_NUMBERS, _NO_NUMBERS, _NO_NUMBERS, _NO_NUMBERS, np.empty(0, np.uint8))


@cache
def links_words() -> bool:
    """Returns whether these functions run here. The first call compiles them, or loads them from Numba's cache."""
    if not is_supported():
        return False
    _compiled()
    return True


def score_words(
    sums: _Matrix,
    shares: _Matrix,
    likeness: _Matrix,
    lexicon: LexiconRows | None,
    parameters: ScoreParameters,
) -> _Matrix:
    """Returns the scores of all pairs of words, and the null shares in the last row.

    The result is float32 `[source words + 1, target words]`.

    Args:
        sums: What each row gives to the words of the source, to special and to other tokens: float32
            `[tokens, source words + 2]`.
        shares: Which share of each token belongs to each target word: float32 `[tokens, target words]`.
        likeness: How alike words are written: float32 `[source words, target words]`.
        lexicon: The words in the lexicon; None: the lexicon has no part.
        parameters: Weights, and whether special tokens are left out.
    """
    scores = np.empty((len(likeness) + 1, likeness.shape[1]), np.float32)
    rows = _NO_LEXICON if lexicon is None else lexicon
    _compiled().score(sums, shares, *rows, likeness, *parameters, scores)
    return scores


def transport(scores: _Matrix, null: _Matrix, power: float, num_rounds: int, tiny: float) -> _Matrix:
    """Returns what goes from each source word to each target word, float32, as a share of the smaller amount.

    Args:
        scores: float32 `[source words, target words]`, at least one pair.
        null: float32 `[target words]`.
        power: What scores are taken to the power of, the inverse of the regularization.
        num_rounds: The rounds of Sinkhorn's algorithm.
        tiny: What is added to each share, and the smallest divisor.
    """
    plan = np.empty(scores.shape, np.float32)
    _compiled().transport(scores, null, power, num_rounds, tiny, plan)
    return plan


@cache
def _compiled() -> Any:
    from .jit import word_links

    return word_links
