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
    """Takes white space into an element where the source has white space at that end of the element.

    Where the source has white space on both sides of the tag, one character stays outside.
    """
    node, source = child.node, units.source_text
    if node.begin == node.end or node.content is not None:
        return
    num_first = min(units.source_space.end_behind(node.begin), node.end) - node.begin
    num_last = node.end - max(units.source_space.begin_before(node.end), node.begin)
    has_space_before = source[max(node.begin - 1, 0) : node.begin].isspace()
    has_space_behind = source[node.end : node.end + 1].isspace()
    first = max(units.target_space.begin_before(child.begin), low, child.begin - num_first - 1)
    last = min(units.target_space.end_behind(child.end), high, child.end + num_last + 1)
    num_before, num_behind = child.begin - first, last - child.end
    child.begin -= max(min(num_first, num_before - has_space_before), 0)
    child.end += max(min(num_last, num_behind - has_space_behind), 0)
