"""Joins the links of two directions: intersection, union, grow-diag-final-and."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from .links import Link
from .pharaoh import sort_links

Symmetrization = Literal["grow_diag_final_and", "intersection", "union"]
SYMMETRIZATIONS: tuple[Symmetrization, ...] = get_args(Symmetrization)

_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))

_Pair = tuple[int, int]


def join_links(forward: Iterable[Link], backward: Iterable[Link], symmetrization: Symmetrization) -> list[Link]:
    """Joins links of both directions; both count the source first. Returns the links in the order of the target.

    The score of a link is the mean of its scores; a direction without the link counts as 0.
    """
    forward_scores = {(link.source, link.target): link.score for link in forward}
    backward_scores = {(link.source, link.target): link.score for link in backward}
    both, either = forward_scores.keys() & backward_scores.keys(), forward_scores.keys() | backward_scores.keys()
    if symmetrization == "intersection":
        chosen = set(both)
    elif symmetrization == "union":
        chosen = set(either)
    else:
        chosen = _grow(set(both), set(either))
        _add_last(chosen, sorted(forward_scores))
        _add_last(chosen, sorted(backward_scores))
    return sort_links(
        Link(*pair, (forward_scores.get(pair, 0.0) + backward_scores.get(pair, 0.0)) / 2) for pair in chosen
    )


def _grow(chosen: set[_Pair], either: set[_Pair]) -> set[_Pair]:
    """Adds neighbours of chosen pairs that one direction has and of which a word has no link (Koehn et al. 2005)."""
    waiting = sorted(chosen)
    sources, targets = {pair[0] for pair in chosen}, {pair[1] for pair in chosen}
    while waiting:
        new: list[_Pair] = []
        for source, target in waiting:
            for source_step, target_step in _NEIGHBOURS:
                pair = (source + source_step, target + target_step)
                if pair in either and pair not in chosen and (pair[0] not in sources or pair[1] not in targets):
                    chosen.add(pair)
                    new.append(pair)
                    sources.add(pair[0])
                    targets.add(pair[1])
        waiting = new
    return chosen


def _add_last(chosen: set[_Pair], pairs: list[_Pair]) -> None:
    """Adds pairs of one direction of which neither word has a link."""
    sources, targets = {pair[0] for pair in chosen}, {pair[1] for pair in chosen}
    for source, target in pairs:
        if source not in sources and target not in targets:
            chosen.add((source, target))
            sources.add(source)
            targets.add(target)
