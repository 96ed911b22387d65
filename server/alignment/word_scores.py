"""From rows over tokens to scores of pairs of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..text import Span, Token

Matrix = NDArray[np.float32]

# A sum that is 0 counts as this number, so that a division by the sum gives 0. No other sum is as small.
_SMALLEST_SUM = np.float32(1e-30)


class WordScores(NamedTuple):
    """How well words go together.

    `scores` is float32 `[source words, target words]`. `null` is float32 `[target words]`: how well a target word goes
    with no source word at all. For each target word, all numbers are at least 0 and sum to at most 1.
    """

    scores: Matrix
    null: Matrix


def token_shares(text: str, tokens: Sequence[Token], words: Sequence[Span]) -> Matrix:
    """Returns which share of each token belongs to each word, float32 `[tokens, words]`.

    The share of a word is the share of the characters of the token, without white space, that the word has. A token
    that covers nothing belongs to the words of the next token. A special token belongs to no word.
    """
    shares = np.zeros((len(tokens), len(words)), np.float32)
    first = 0  # the first word that a later token may share characters with
    for index, token in enumerate(tokens):
        while first < len(words) and words[first][1] <= token.begin:
            first += 1
        word = first
        while word < len(words) and words[word][0] < token.end:
            begin, end = words[word]
            shares[index, word] = max(0, min(end, token.end) - max(begin, token.begin))
            word += 1
        shares[index] /= max(1, sum(map(len, text[token.begin : token.end].split())))
    for index in range(len(tokens) - 2, -1, -1):
        token = tokens[index]
        if not token.special and token.begin == token.end:
            shares[index] = shares[index + 1]
    return shares


def score_words(
    rows: Matrix, source_shares: Matrix, target_shares: Matrix, is_special: NDArray[np.bool_], *, renormalizes: bool
) -> WordScores:
    """Returns the scores of all pairs of words.

    A score is a sum over the tokens of the source word, and a mean over the tokens of the target word.

    Args:
        rows: float32 `[steps, source tokens]`, the mean rows of the heads.
        source_shares: What `token_shares` says of the source, `[source tokens, source words]`.
        target_shares: Likewise of the target, `[steps, target words]`.
        is_special: Which source tokens are special, bool `[source tokens]`.
        renormalizes: Special tokens are left out of each row before anything else. Otherwise what they take is the null
            share of a target word.
    """
    rows = np.asarray(rows, np.float32)
    means = target_shares / np.maximum(target_shares.sum(0), _SMALLEST_SUM)
    if renormalizes:
        # Special tokens have no share of a word. So it is enough to divide by what the other tokens take.
        totals = rows @ (~is_special).astype(np.float32)
        means /= np.maximum(totals, _SMALLEST_SUM)[:, None]
        null = np.zeros(target_shares.shape[1], np.float32)
    else:
        null = (rows @ is_special.astype(np.float32)) @ means
    return WordScores(source_shares.T @ (rows.T @ means), null)
