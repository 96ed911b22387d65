"""How well links agree with reference links: error rate, precision, recall."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LinkCounts(NamedTuple):
    """Counts of links, summed over pairs of texts.

    Attributes:
        found: The links that were found.
        wanted: The sure links of the reference.
        common: The links that were found and are sure.
        allowed: The links that were found and are sure or possible.
    """

    found: int = 0
    wanted: int = 0
    common: int = 0
    allowed: int = 0

    @property
    def error_rate(self) -> float:
        """The alignment error rate (Och and Ney 2003). With sure links alone it is 1 - F1."""
        return 1 - (self.common + self.allowed) / max(1, self.found + self.wanted)

    @property
    def precision(self) -> float:
        """The share of the links that the reference has, sure or possible."""
        return self.allowed / max(1, self.found)

    @property
    def recall(self) -> float:
        """The share of the reference's sure links that were found."""
        return self.common / max(1, self.wanted)


# The links of a pair of texts that were found, the sure ones of the reference, and its possible ones (None: all are
# sure). Each is a bool matrix `[source words, target words]`.
CountedPair = tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_] | None]


def count_links(pairs: Iterable[CountedPair]) -> LinkCounts:
    """Counts links and reference links."""
    return sum_counts(count_each(pairs))


def count_each(pairs: Iterable[CountedPair]) -> NDArray[np.int64]:
    """Counts as `count_links` does, each pair of texts for itself: int64 `[pairs, 4]`."""
    counts: list[tuple[int, int, int, int]] = []
    for links, sure, possible in pairs:
        common = int((links & sure).sum())
        allowed = common if possible is None else int((links & (sure | possible)).sum())
        counts.append((int(links.sum()), int(sure.sum()), common, allowed))
    return np.array(counts, np.int64).reshape(-1, 4)


def sum_counts(counts: NDArray[np.int64]) -> LinkCounts:
    """Returns the sums over pairs of texts of counts `[pairs, 4]`."""
    return LinkCounts(*map(int, counts.sum(0)))
