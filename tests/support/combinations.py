"""Chooses which combinations of parameters a test runs: few, but each pair of values occurs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
