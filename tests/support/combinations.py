"""Chooses which combinations of parameters a test runs: few, but each value or each pair of values occurs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import pytest


def pairwise(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Chooses combinations of one value of each axis. Each two values of two axes are in at least one combination.

    Most faults show with one or two values. The choice is greedy, and the same in every run: a combination takes the
    first missing pair, and then the value of each other axis that adds the most missing pairs.
    """
    sizes = [range(len(axis)) for axis in axes]
    missing = {
        frozenset({(i, a), (j, b)})
        for i, j in combinations(range(len(axes)), 2)
        for a, b in product(sizes[i], sizes[j])
    }
    chosen: list[tuple[Any, ...]] = []
    while missing:
        values = dict(min(missing, key=sorted))
        for axis in range(len(axes)):
            if axis not in values:
                values[axis] = max(
                    sizes[axis],
                    key=lambda value: (
                        sum(frozenset({(axis, value), other}) in missing for other in values.items()),
                        (value - len(chosen)) % len(axes[axis]),
                    ),
                )
        missing -= {frozenset(pair) for pair in combinations(values.items(), 2)}
        chosen.append(tuple(axes[axis][values[axis]] for axis in range(len(axes))))
    return chosen


def slow_except(values: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Marks the values that are not `fast` as slow. `make test` runs the fast values only."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def covering(cases: Sequence[Mapping[str, Any]], strength: int) -> list[int]:
    """Chooses cases in which each combination of the values of `strength` parameters occurs. Returns their places.

    A case has the values by name. Two values are the same if they print the same. The search is greedy: the next case
    is the one that has the most missing combinations.
    """
    found = [{*combinations(sorted((name, repr(value)) for name, value in case.items()), strength)} for case in cases]
    missing = set[tuple[tuple[str, str], ...]]().union(*found)
    chosen: list[int] = []
    while missing:
        best = max(range(len(cases)), key=lambda place: (len(found[place] & missing), -place))
        missing -= found[best]
        chosen.append(best)
    return sorted(chosen)
