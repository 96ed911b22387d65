"""How alike the encoder's states of the words of two texts are.

The idea is TransAlign's (arXiv:2510.27337): the encoder of a translation model reads both texts, and words that are
translations of one another have similar states.
"""

from __future__ import annotations

import numpy as np

from .word_scores import SMALLEST_SUM, Matrix

# What cosines are divided by before a softmax is taken of them.
_TEMPERATURE = 0.1


def compare_states(
    source_states: Matrix, source_shares: Matrix, target_states: Matrix, target_shares: Matrix
) -> Matrix:
    """Returns how alike the states of all pairs of words are, float32 `[source words, target words]`, from 0 to 1.

    The vector of a word is the mean of its tokens' states. Of the cosines of all vectors, divided by 0.1, a softmax is
    taken over the source words, and another one over the target words (Dou and Neubig 2021, arXiv:2101.08231, section
    2.2). The result is the geometric mean of both.

    Args:
        source_states: The encoder's states, float32 `[source tokens, width]`.
        source_shares: What `token_shares` says of these tokens, `[source tokens, source words]`.
        target_states: Likewise of the target, as the encoder has read it: `[target tokens, width]`.
        target_shares: Likewise, `[target tokens, target words]`.
    """
    cosines = _unit_vectors(source_states, source_shares) @ _unit_vectors(target_states, target_shares).T
    if not cosines.size:
        return cosines
    logits = cosines / np.float32(_TEMPERATURE)
    return np.sqrt(_softmax(logits, 0) * _softmax(logits, 1))


def _unit_vectors(states: Matrix, shares: Matrix) -> Matrix:
    """The means of the states of each word's tokens, divided by their lengths: `[words, width]`.

    A word without tokens has zeros.
    """
    sums = shares.T @ states  # a cosine does not see whether a vector is a sum or a mean
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), SMALLEST_SUM)


def _softmax(logits: Matrix, axis: int) -> Matrix:
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)
