"""IBM model 1 (Brown et al. 1993): which words are translations of one another, learnt from pairs of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_Ids = NDArray[np.int64]

# What each pair of words that occurs counts for beforehand: rare words are then less sure of one another.
_PRIOR_COUNT = 0.01


class WordTable(NamedTuple):
    """Probabilities of pairs of words that occur together.

    Attributes:
        source: The number of the source word of each pair, int64 `[pairs]`; 0 is the null word.
        target: The number of the target word of each pair, int64 `[pairs]`.
        probabilities: t(target | source), float64 `[pairs]`.
        counts: How often the words are expected to be linked, float64 `[pairs]`.
    """

    source: _Ids
    target: _Ids
    probabilities: NDArray[np.float64]
    counts: NDArray[np.float64]


def learn_word_table(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    num_iterations: int = 5,
    on_iteration: Callable[[], None] = lambda: None,
) -> WordTable:
    """Learns t(target | source) by expectation maximization. Word numbers are from 1.

    Every source gets the null word. Equation 17 of the paper, with all pairs of words of all sentences at once.
    """
    cells = _Cells(sources, targets)
    probabilities = np.full(len(cells.source), 1.0)
    counts = probabilities
    for _ in range(num_iterations):
        posterior = probabilities[cells.pair]
        posterior /= np.bincount(cells.place, posterior)[cells.place]
        counts = np.bincount(cells.pair, posterior, len(cells.source)).astype(np.float64)
        totals = np.bincount(cells.source, counts + _PRIOR_COUNT)
        probabilities = (counts + _PRIOR_COUNT) / totals[cells.source]
        on_iteration()
    return WordTable(cells.source, cells.target, probabilities, counts)


class _Cells:
    """All cells of all sentences: a target word at its place, with a source word of the same pair of sentences.

    Attributes:
        pair: The number of the pair of words of each cell.
        place: The number of the place of the target word of each cell.
        source: The source word of each pair of words.
        target: The target word of each pair of words.
    """

    def __init__(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        source_cells: list[_Ids] = []
        target_cells: list[_Ids] = []
        places: list[_Ids] = []
        num_places = 0
        for source, target in zip(sources, targets, strict=True):
            words = np.array([0, *source], np.int64)
            targets_here = np.array(target, np.int64)
            source_cells.append(np.tile(words, len(target)))
            target_cells.append(np.repeat(targets_here, len(words)))
            places.append(np.repeat(np.arange(num_places, num_places + len(target)), len(words)))
            num_places += len(target)
        self.place = np.concatenate(places)
        keys = np.concatenate(source_cells) << 32 | np.concatenate(target_cells)
        pairs, self.pair = np.unique(keys, return_inverse=True)
        self.source, self.target = pairs >> 32, pairs & 0xFFFFFFFF
