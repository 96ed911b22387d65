"""The order of nodes in the target, and the white space at their ends."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import takewhile

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
    node, source, target = child.node, units.source_text, units.target_text
    if node.begin == node.end or node.content is not None:
        return
    text = source[node.begin : node.end]
    num_first, num_last = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    has_space_before = source[max(node.begin - 1, 0) : node.begin].isspace()
    has_space_behind = source[node.end : node.end + 1].isspace()
    num_before = _count_spaces(reversed(target[max(low, child.begin - num_first - 1) : child.begin]))
    num_behind = _count_spaces(target[child.end : min(high, child.end + num_last + 1)])
    child.begin -= max(min(num_first, num_before - has_space_before), 0)
    child.end += max(min(num_last, num_behind - has_space_behind), 0)


def _count_spaces(characters: Iterable[str]) -> int:
    """Counts the white space at the begin of characters."""
    return sum(1 for _ in takewhile(str.isspace, characters))
