"""How well links agree with reference links: error rate, precision, recall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LinkCounts(NamedTuple):
    """Counts of links, summed over pairs of texts. All reference links are sure links."""

    found: int = 0
    wanted: int = 0
    common: int = 0

    @property
    def error_rate(self) -> float:
        """The alignment error rate (Och and Ney 2003). With sure links alone it is 1 - F1."""
        return 1 - 2 * self.common / max(1, self.found + self.wanted)

    @property
    def precision(self) -> float:
        """The share of the links that the reference has."""
        return self.common / max(1, self.found)

    @property
    def recall(self) -> float:
        """The share of the reference's links that were found."""
        return self.common / max(1, self.wanted)


def count_links(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> LinkCounts:
    """Counts links and reference links, each pair of texts as two bool matrices `[source words, target words]`."""
    return sum_counts(count_each(pairs))


def count_each(pairs: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]]) -> NDArray[np.int64]:
    """Counts as `count_links` does, each pair of texts for itself: int64 `[pairs, 3]`."""
    counts = [(links.sum(), reference.sum(), (links & reference).sum()) for links, reference in pairs]
    return np.array(counts, np.int64).reshape(-1, 3)


def sum_counts(counts: NDArray[np.int64]) -> LinkCounts:
    """Returns the sums over pairs of texts of counts `[pairs, 3]`."""
    return LinkCounts(*map(int, counts.sum(0)))
