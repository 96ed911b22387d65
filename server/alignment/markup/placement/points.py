"""Places beside a neighbour, for nodes that cover nothing in the target."""

from __future__ import annotations

from ..flows import Node, Side
from ..options import Placement
from .placed import Child, Place, Placed
from .runs import Taken
from .units import Area, Units, find_area

# How many words beside a node are asked for their links.
_MAX_DISTANCE = 16


class PointFinder:
    """Finds places between the units of one target."""

    def __init__(self, units: Units) -> None:
        self._units = units

    def find(
        self, child: Child, around: tuple[int, int], parents: list[Placed], areas: list[Area], taken: Taken
    ) -> int:
        """Finds a place beside a neighbour for a node that covers nothing in the target."""
        is_lost = child.first < child.last and child.node.content is None
        if not areas:
            return self._settle(child, "empty", 0.0, parents[0].begin)
        if child.last == around[0]:
            return self._settle(child, "structure", 1.0, self._find_begin(child.node, parents[0]))
        if child.first == around[1]:
            return self._settle(child, "structure", 1.0, self._find_end(child.node, parents[-1]))
        found = self._ask_neighbours(child, around, areas)
        if found is None:
            share = (child.first - around[0]) / (around[1] - around[0])
            first, last = areas[0]
            unit = min(first + round(share * (last - first)), last - 1)
            side, score = "right", 0.0
        else:
            side, unit, score = found
        limit = taken.limit(unit, side == "left")
        if limit is not None:
            unit = limit - 1 if side == "left" else limit
        offset = self._units.target[unit][1 if side == "left" else 0]
        if side == "left":
            offset = self._skip_spaces(offset, parents[find_area(areas, unit)].end, self._count_spaces(child.node))
        return self._settle(child, "empty" if is_lost else "neighbours", score, offset)

    def _find_begin(self, node: Node, parent: Placed) -> int:
        """Returns the begin of the parent, or the end of the white space there if the node stands behind it."""
        return self._skip_spaces(parent.begin, parent.end, node.begin - parent.node.begin)

    def _find_end(self, node: Node, parent: Placed) -> int:
        """Returns the end of the parent, or the begin of the white space there if the node stands before it."""
        low = max(parent.begin, parent.end - (parent.node.end - node.end))
        return max(low, self._units.target_space.begin_before(parent.end))

    def _count_spaces(self, node: Node) -> int:
        """Counts the white space before a node in the source."""
        return node.begin - self._units.source_space.begin_before(node.begin)

    def _skip_spaces(self, offset: int, end: int, num_spaces: int) -> int:
        """Returns the end of at most so many characters of white space."""
        return max(offset, min(end, offset + num_spaces, self._units.target_space.end_behind(offset)))

    def _settle(self, child: Child, placement: Placement, score: float, offset: int) -> int:
        child.place = Place(placement, score)
        return offset

    def _ask_neighbours(
        self, child: Child, around: tuple[int, int], areas: list[Area]
    ) -> tuple[Side, int, float] | None:
        """Returns the neighbour to stay beside: on which side, its target unit, and the score of the link."""
        node = child.node
        is_left_glued = node.begin > 0 and not self._units.source_text[node.begin - 1].isspace()
        is_right_glued = node.end < len(self._units.source_text) and not self._units.source_text[node.end].isspace()
        prefers_right = node.side == "right" if node.side else is_right_glued and not is_left_glued
        sides: list[Side] = ["right", "left"] if prefers_right else ["left", "right"]
        for distance in range(_MAX_DISTANCE):
            for side in sides:
                unit = child.first - 1 - distance if side == "left" else child.last + distance
                if around[0] <= unit < around[1] and (link := self._units.find_link(unit, areas)):
                    return side, *link
        return None
