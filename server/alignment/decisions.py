"""From scores of pairs of words to links: argmax, threshold, optimal transport and itermax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...kernels.cpu import links_words, transport
from .links import Link
from .word_scores import FEW_NUMBERS, Matrix, WordScores

LinkMethod = Literal["argmax", "threshold", "optimal_transport", "itermax"]
LINK_METHODS: tuple[LinkMethod, ...] = get_args(LinkMethod)

# Sinkhorn's iterations, and the regularization: the scores are taken to the power of its inverse.
_NUM_SINKHORN = 20
_REGULARIZATION = 0.5
# SimAlign's numbers: rounds of itermax, and what a score counts for where one of its words has a link already.
_NUM_ITERMAX = 2
_ITERMAX_DISCOUNT = 0.9

# What the score of a guess counts for beside the score of a link.
_GUESS_DISCOUNT = 0.1

# Up to so many numbers, lists are searched for the greatest numbers.
_FEWEST_NUMBERS = 64

# No link has a smaller score.
TINY = 1e-9


def decide_links(word_scores: WordScores, method: LinkMethod, threshold: float = 0.0) -> list[Link]:
    """Returns the links that a method chooses, in the order of the target.

    `threshold` is the least score of a link. With "optimal_transport" it is the least share of what the word with
    fewer words on its side sends or gets.
    """
    if method == "argmax":
        return _decide_argmax(word_scores, float(np.float32(max(threshold, TINY))))
    is_link = rate_pairs(word_scores, method) >= max(threshold, TINY)
    targets, sources = np.nonzero(is_link.T)  # in the order of the target
    scores = np.minimum(word_scores.scores[sources, targets], 1)
    return list(map(Link, sources.tolist(), targets.tolist(), scores.tolist()))


def guess_links(word_scores: WordScores, links: Sequence[Link], min_score: float = 0.0) -> list[Link]:
    """Returns for each source word without a link the target word that it goes with best, in the order of the source.

    A guess is no link: its score is far below that of a link. Markup needs a place for words that have no link.
    """
    scores = np.clip(word_scores.scores, 0, 1)
    if not scores.size:
        return []
    linked = {link.source for link in links}
    best = scores.argmax(1)
    return [
        Link(source, int(target), _GUESS_DISCOUNT * float(scores[source, target]))
        for source, target in enumerate(best)
        if source not in linked and scores[source, target] >= max(min_score, TINY)
    ]


def rate_pairs(word_scores: WordScores, method: LinkMethod) -> Matrix:
    """Returns what a method compares with its threshold, float32 `[source words, target words]`; 0: no link."""
    scores, null = word_scores
    if not scores.size or method == "threshold":
        return scores
    if method == "optimal_transport":
        return _transport(scores, null)
    chosen = _argmax(scores, null) if method == "argmax" else _itermax(scores)
    return np.where(chosen, scores, np.float32(0))


def _decide_argmax(word_scores: WordScores, threshold: float) -> list[Link]:
    """The links of `rate_pairs` and its argmax, without a matrix: links of words that come one by one are made here."""
    scores, null = word_scores
    if not scores.size:
        return []
    if scores.size <= _FEWEST_NUMBERS:  # then lists take less time than NumPy's calls
        columns = scores.T.tolist()
        values = [max(column) for column in columns]
        best = [column.index(value) for column, value in zip(columns, values, strict=True)]
        return _keep(best, values, null.tolist(), threshold)
    return _keep(scores.argmax(0).tolist(), scores.max(0).tolist(), null.tolist(), threshold)


def _keep(best: Sequence[int], values: Sequence[float], null: Sequence[float], threshold: float) -> list[Link]:
    """Returns the links of target words with their best source words, where the scores are high enough."""
    pairs = zip(best, values, null, strict=True)
    return [
        Link(source, target, min(value, 1.0))
        for target, (source, value, null_share) in enumerate(pairs)
        if value >= max(threshold, null_share)
    ]


def _argmax(scores: Matrix, null: Matrix) -> NDArray[np.bool_]:
    """Each target word with its best source word, unless its null share is higher. The first of equal words wins."""
    best = scores.argmax(0)
    chosen = np.zeros(scores.shape, np.bool_)
    targets = np.arange(scores.shape[1])
    values = scores[best, targets]
    chosen[best, targets] = (values >= null) & (values > TINY)
    return chosen


def _transport(scores: Matrix, null: Matrix) -> Matrix:
    """Entropic optimal transport (Dou and Neubig 2021, section 2.2), with Sinkhorn's algorithm.

    Each source word sends and each target word gets the same amount. Returns for each pair what goes from one word to
    the other, as a share of the smaller of both amounts.
    """
    num_source, num_target = scores.shape
    if scores.size <= FEW_NUMBERS and links_words():
        return transport(scores, null, 1 / _REGULARIZATION, _NUM_SINKHORN, TINY)
    shares = scores / np.maximum(np.maximum.reduce(scores, 0) + null, TINY)
    kernel = np.asarray(shares + TINY, np.float64) ** (1 / _REGULARIZATION)
    transposed = kernel.T
    rows, columns = np.ones(num_source), np.ones(num_target)
    for _ in range(_NUM_SINKHORN):
        np.divide(1 / num_source, kernel.dot(columns, rows), rows)
        np.divide(1 / num_target, transposed.dot(rows, columns), columns)
    plan = rows[:, None] * kernel * columns
    return (plan * max(num_source, num_target)).astype(np.float32)


def _itermax(scores: Matrix) -> NDArray[np.bool_]:
    """Mutual argmax, again among pairs of words of which at most one has a link (Jalili Sabet et al. 2020, 2.2)."""
    chosen = np.zeros(scores.shape, np.bool_)
    for _ in range(_NUM_ITERMAX):
        has_source, has_target = chosen.any(1, keepdims=True), chosen.any(0, keepdims=True)
        left = scores * np.where(has_source | has_target, np.float32(_ITERMAX_DISCOUNT), np.float32(1))
        left = np.where(has_source & has_target, np.float32(0), left)
        is_best = np.equal(left, left.max(1, keepdims=True)) & np.equal(left, left.max(0, keepdims=True))
        new = is_best & (left > TINY) & ~chosen
        if not new.any():
            break
        chosen |= new
    return chosen
