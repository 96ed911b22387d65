"""From rows over tokens to scores of pairs of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..text import Span, Token

Matrix = NDArray[np.float32]

# A sum that is 0 counts as this number, so that a division by the sum gives 0. No other sum is as small.
SMALLEST_SUM = 1e-30

# Up to so many pairs of words, the compiled functions are faster than NumPy.
FEW_NUMBERS = 1024


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
    if len(words) == 1:  # as while a target grows
        return np.array(_word_shares(text, tokens, words[0]), np.float32)[:, None]
    shares = np.zeros((len(tokens), len(words)), np.float32)
    first, num_words = 0, len(words)  # the first word that a later token may share characters with
    for index, token in enumerate(tokens):
        begin, end = token.begin, token.end
        while first < num_words and words[first][1] <= begin:
            first += 1
        word = first
        if word == num_words or words[word][0] >= end:
            continue
        size = max(1, sum(map(len, text[begin:end].split())))
        while word < num_words and words[word][0] < end:
            word_begin, word_end = words[word]
            shares[index, word] = max(0, min(word_end, end) - max(word_begin, begin)) / size
            word += 1
    for index in range(len(tokens) - 2, -1, -1):
        token = tokens[index]
        if token.begin == token.end and not token.special:
            shares[index] = shares[index + 1]
    return shares


def _word_shares(text: str, tokens: Sequence[Token], word: Span) -> list[float]:
    """Returns which share of each token belongs to a word."""
    begin, end = word
    shares: list[float] = []
    for token in tokens:
        covered = min(end, token.end) - max(begin, token.begin)
        size = 0 if covered <= 0 else sum(map(len, text[token.begin : token.end].split()))
        shares.append(covered / size if size else 0.0)
    for index in range(len(tokens) - 2, -1, -1):
        if tokens[index].begin == tokens[index].end and not tokens[index].special:
            shares[index] = shares[index + 1]
    return shares


def source_columns(source_shares: Matrix, is_special: Sequence[bool]) -> Matrix:
    """Returns what rows are multiplied with, so that they are about words, float32 `[source tokens, source words + 2]`.

    The columns are what `token_shares` says of the source, which tokens are special, and which are not.
    """
    columns = np.empty((len(is_special), source_shares.shape[1] + 2), np.float32)
    columns[:, :-2], columns[:, -2] = source_shares, is_special
    np.subtract(1, columns[:, -2], out=columns[:, -1])
    return columns


def score_words(sums: Matrix, target_shares: Matrix, *, renormalizes: bool) -> WordScores:
    """Returns the scores of all pairs of words.

    A score is a sum over the tokens of the source word, and a mean over the tokens of the target word.

    Args:
        sums: What each row gives to the words of the source, and to special and other tokens: see `source_columns`.
        target_shares: What `token_shares` says of the target, `[steps, target words]`.
        renormalizes: Special tokens are left out of each row before anything else. Otherwise what they take is the null
            share of a target word.
    """
    means = target_shares / np.maximum(np.add.reduce(target_shares, 0), SMALLEST_SUM)
    if renormalizes:
        # Special tokens have no share of a word. So it is enough to divide by what the other tokens take.
        means /= np.maximum(sums[:, -1:], SMALLEST_SUM)
    scores = sums[:, :-1].T @ means
    if renormalizes:
        scores[-1] = 0
    return WordScores(scores[:-1], scores[-1])
