"""Runs: which target units an element covers."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from .units import Area, Units, find_area

# The weight of an anchored unit: an element always covers the placeholders that are inside.
_ANCHOR_WEIGHT = 1e6


@dataclass(slots=True)
class Run:
    """Target units side by side, from `first` to before `last`.

    Attributes:
        gain: The scores of the links into the element, less the scores of the links from elsewhere.
        score: The mean score of the links into the element.
    """

    first: int
    last: int
    gain: float
    score: float


class RunFinder:
    """Finds the runs of elements. The time grows with the number of links of an element."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._sums = [0.0, *accumulate(units.totals)]

    def find_best(self, first: int, last: int, areas: Sequence[Area], taken: Taken) -> Run | None:
        """Finds the run with the largest gain for the source units from `first` to before `last`.

        A run lies in one of the `areas`, which ascend, and has no unit that is taken. Of all runs, the run with the
        largest gain has the most links into the element and the fewest from elsewhere (Bentley 1984, "Programming
        pearls: algorithm design techniques", the maximum subarray).
        """
        best: Run | None = None
        for run, _ in self._grow(first, last, areas, taken, max_gap=inf):
            if best is None or run.gain > best.gain:
                best = run
        return best

    def find_end(self, first: int, last: int, area: Area, taken: Taken, *, is_left: bool) -> Run | None:
        """Finds the run with the largest gain among those at the begin of an area if `is_left`, or else at its end."""
        best: Run | None = None
        inside, scores = 0.0, [0.0]
        for unit, (total, score, _) in sorted(self._weigh(first, last, [area]).items(), reverse=not is_left):
            edge = (area[0], unit + 1) if is_left else (unit, area[1])
            if taken.holds(*edge):
                break
            inside += total
            scores.append(score)
            gain = 2 * inside - (self._sums[edge[1]] - self._sums[edge[0]])
            if best is None or gain > best.gain:
                best = Run(*edge, gain, sum(scores) / (len(scores) - 1))
        return best

    def find_parts(self, first: int, last: int, areas: Sequence[Area], taken: Taken) -> list[Run]:
        """Finds all runs that have links into the element, and between these no links from elsewhere."""
        parts: list[Run] = []
        for run, is_new in self._grow(first, last, areas, taken, max_gap=0.0):
            if is_new:
                parts.append(run)
            else:
                parts[-1] = run
        return [run for run in parts if run.gain > 0] or parts[:1]

    def _grow(
        self, first: int, last: int, areas: Sequence[Area], taken: Taken, max_gap: float
    ) -> Iterator[tuple[Run, bool]]:
        """Yields for each unit with a link into the element the best run that ends there, and whether the run is new.

        A run is not continued over links from elsewhere whose scores are above `max_gap` together.
        """
        run: Run | None = None
        num_units, last_area = 0, -1
        for unit, (inside, best, is_anchored) in sorted(self._weigh(first, last, areas).items()):
            if taken.holds(unit, unit + 1):
                continue
            area = find_area(areas, unit)
            weight = 2 * inside - self._units.totals[unit] + (_ANCHOR_WEIGHT if is_anchored else 0.0)
            gap = self._sums[unit] - self._sums[run.last] if run else 0.0
            is_new = run is None or gap > max_gap or run.gain <= gap or area != last_area
            if run is None or is_new or taken.holds(run.last, unit):
                run, num_units, is_new = Run(unit, unit + 1, weight, best), 1, True
            else:
                score = (run.score * num_units + best) / (num_units + 1)
                run, num_units = Run(run.first, unit + 1, run.gain - gap + weight, score), num_units + 1
            last_area = area
            yield run, is_new

    def _weigh(self, first: int, last: int, areas: Sequence[Area]) -> dict[int, tuple[float, float, bool]]:
        """Returns for each target unit with links into an element: their sum, the best, and whether one is anchored."""
        weights: dict[int, tuple[float, float, bool]] = {}
        for source in range(first, last):
            is_anchored = source in self._units.anchored
            for unit, score in self._units.links[source]:
                if find_area(areas, unit) < 0:
                    continue
                total, best, was_anchored = weights.get(unit, (0.0, 0.0, False))
                weights[unit] = total + score, max(best, score), was_anchored or is_anchored
        return weights


class Taken:
    """Target units that the elements beside an element have."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, first: int, last: int) -> None:
        """Takes the units from `first` to before `last`."""
        insort(self._spans, (first, last))

    def holds(self, first: int, last: int) -> bool:
        """Whether one of the units is taken."""
        index = bisect_left(self._spans, (last, -1)) - 1
        return first < last and index >= 0 and self._spans[index][1] > first

    def limit(self, unit: int, is_left: bool) -> int | None:
        """Returns the first unit of what holds a unit, or the unit behind it if `is_left`; None if nothing holds it."""
        index = bisect_left(self._spans, (unit + 1, -1)) - 1
        if index < 0 or self._spans[index][1] <= unit:
            return None
        return self._spans[index][1] if is_left else self._spans[index][0]


def fit_punctuation(units: Units, first: int, last: int, run: Run, area: Area, taken: Taken) -> None:
    """Leaves punctuation at the ends of a run outside, unless the source units have punctuation there."""
    has_first, has_last = units.is_mark(first), units.is_mark(last - 1)
    while run.last - run.first > 1 and not has_first and units.is_target_mark(run.first):
        run.first += 1
    while run.last - run.first > 1 and not has_last and units.is_target_mark(run.last - 1):
        run.last -= 1

    def is_free_mark(unit: int) -> bool:
        return not units.totals[unit] and not taken.holds(unit, unit + 1) and units.is_target_mark(unit)

    if has_last and not units.is_target_mark(run.last - 1) and run.last < area[1] and is_free_mark(run.last):
        run.last += 1
    if has_first and not units.is_target_mark(run.first) and run.first > area[0] and is_free_mark(run.first - 1):
        run.first -= 1
