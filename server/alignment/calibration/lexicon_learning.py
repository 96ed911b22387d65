"""Learns the lexicon from pairs of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..lexicon import Lexicon
from .ibm_model import WordTable, learn_word_table

# The least score of a pair of words, and the most pairs: the best are kept.
_MIN_SCORE = 0.02
_MAX_PAIRS = 120_000

_NUM_ITERATIONS = 5
NUM_STEPS = 2 * _NUM_ITERATIONS

Words = Sequence[Sequence[str]]


def number_words(texts: Words) -> tuple[list[str], list[list[int]]]:
    """Returns the words, and the numbers of each text's words. Numbers begin at 1."""
    numbers: dict[str, int] = {}
    numbered = [[numbers.setdefault(word, len(numbers) + 1) for word in text] for text in texts]
    return list(numbers), numbered


def learn_lexicon(sources: Words, targets: Words, on_step: Callable[[], None] = lambda: None) -> Lexicon:
    """Learns a lexicon from the folded words of pairs of texts, by IBM model 1 in both directions.

    The score of a source word s and a target word t is sqrt(t(t | s) t(s | t)).
    """
    source_words, source_texts = number_words(sources)
    target_words, target_texts = number_words(targets)
    forward = learn_word_table(source_texts, target_texts, _NUM_ITERATIONS, on_step)
    backward = learn_word_table(target_texts, source_texts, _NUM_ITERATIONS, on_step)
    scores = join_tables(forward, backward)
    kept = np.flatnonzero(scores >= _MIN_SCORE)
    if len(kept) > _MAX_PAIRS:
        kept = kept[np.argsort(scores[kept])[-_MAX_PAIRS:]]
    return Lexicon.of_pairs(
        (source_words[source - 1], target_words[target - 1], score)
        for source, target, score in zip(
            forward.source[kept].tolist(), forward.target[kept].tolist(), scores[kept].tolist(), strict=True
        )
    )


def join_tables(forward: WordTable, backward: WordTable) -> np.ndarray:
    """Returns sqrt(t(t | s) t(s | t)) of the pairs of the forward table, float64 `[pairs]`; 0 for the null word."""
    keys = backward.target << 32 | backward.source  # as the pairs of the forward table are sorted
    order = np.argsort(keys)
    places = np.searchsorted(keys[order], forward.source << 32 | forward.target)
    opposite = backward.probabilities[order[np.minimum(places, len(order) - 1)]]
    return np.where(forward.source > 0, np.sqrt(forward.probabilities * opposite), 0.0)
