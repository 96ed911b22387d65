"""The order of nodes in the target, and the white space at their ends."""

from __future__ import annotations

from bisect import bisect_left

from .placed import Placed
from .units import Units


def arrange(units: Units, parents: list[Placed], placed: list[Placed]) -> None:
    """Puts nodes into the parts of their parent, in the order of the target, with the white space at their ends."""
    ends = [part.end for part in parents]
    for part in parents:
        part.children = []
    for child in sorted(placed, key=lambda child: (child.begin, child.end > child.begin)):
        parent = parents[min(bisect_left(ends, child.end), len(parents) - 1)]
        parent.children.append(child)
    for parent in parents:
        for number, child in enumerate(parent.children):
            low = parent.children[number - 1].end if number else parent.begin
            following = parent.children[number + 1 : number + 2]
            _take_white_space(units, child, low, following[0].begin if following else parent.end)


def _take_white_space(units: Units, child: Placed, low: int, high: int) -> None:
    """Takes white space into an element where the source has white space at that end of the element."""
    node = child.node
    if node.begin == node.end or node.content is not None:
        return
    if units.source_text[node.begin].isspace():
        while child.begin > low and units.target_text[child.begin - 1].isspace():
            child.begin -= 1
    if units.source_text[node.end - 1].isspace():
        while child.end < high and units.target_text[child.end].isspace():
            child.end += 1
