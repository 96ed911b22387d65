"""Places the elements of a flow in the target of the flow, by the links between their words.

Elements are placed from the outside to the inside: an element lies in the places of the element around it, and has no
unit of the elements beside it. So elements nest in the target as they do in the source, whatever the links say.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace

from ..flows import Flow, Node
from .arrangement import arrange
from .placed import Child, Place, Placed
from .points import PointFinder
from .runs import Run, RunFinder, Taken, fit_punctuation
from .units import Area, LinkedFlow, Units, find_area, make_units

# Inside so many elements, the words of an element are not counted one by one.
_MAX_DEPTH = 64


class FlowPlacer:
    """Places the nodes of one flow.

    Attributes:
        root: The root, with all nodes at their places.
        places: By the number of the mark: how each place was found.
    """

    def __init__(self, flow: Flow, linked: LinkedFlow, can_split: bool) -> None:
        self._can_split = can_split
        nodes = _list_nodes(flow.root)
        self._units: Units = make_units(flow, nodes, linked)
        self._begins = [begin for begin, _ in self._units.source]
        self._finder = RunFinder(self._units)
        self._points = PointFinder(self._units)
        self._anchors = {id(node) for node, _ in linked.anchors}
        self.places: dict[int, Place] = {}
        self.root = Placed(flow.root, 0, len(linked.target_text))

    def place(self) -> None:
        """Places all nodes."""
        waiting = [([self.root], self._whole(), 0)]
        while waiting:
            parts, areas, depth = waiting.pop()
            below = self._place_children(parts, areas, parts[0].node.children, is_deep=depth >= _MAX_DEPTH)
            waiting += [(inner_parts, inner_areas, depth + 1) for inner_parts, inner_areas in below]

    def place_each(self) -> list[Placed]:
        """Places each node of the root for itself. The nodes may overlap."""
        placed: list[Placed] = []
        for node in self.root.node.children:
            self._place_children([self.root], self._whole(), [node])
            placed.append(self.root.children[0])
        return placed

    def _whole(self) -> list[Area]:
        return [(0, len(self._units.target))] if self._units.target else []

    # ---- one element: its children ----------------------------------------------------------------------------------

    def _place_children(
        self, parents: list[Placed], areas: list[Area], nodes: Sequence[Node], is_deep: bool = False
    ) -> list[tuple[list[Placed], list[Area]]]:
        """Places nodes in the parts of their parent. Returns the parts and the areas of each node with children."""
        if not nodes:
            return []
        parent = parents[0].node
        around = self._find_units(parent)
        children = [Child(node, *self._find_units(node), [], Place("empty", 0.0)) for node in nodes]
        taken = Taken()
        whole = next((child for child in children if self._covers(child, around, areas, is_deep)), None)
        if whole is not None:
            self._cover(whole, areas, taken)
        else:
            self._choose_ends(children, areas, taken)
            self._choose_runs(children, areas, taken)
        placed: list[tuple[Placed, Child]] = []
        for group in _join_touching(children):
            spans = [(self._units.target[run.first][0], self._units.target[run.last - 1][1]) for run in group[0].runs]
            if not spans:
                whole = group[0]
                if len(group) > 1:
                    node = replace(whole.node, end=group[-1].node.end)
                    whole = replace(whole, node=node, last=group[-1].last)
                offset = self._points.find(whole, around, parents, areas, taken)
                spans = [(offset, offset)]
                for child in group:
                    child.place = whole.place
            placed += [(Placed(child.node, begin, end), child) for child in group for begin, end in spans]
        self.places.update((child.node.mark, child.place) for child in children if child.node.mark >= 0)
        _keep_between(parents, [part for part, _ in placed])
        arrange(self._units, parents, [part for part, _ in placed])
        below: dict[int, tuple[list[Placed], list[Area]]] = {}
        for part, child in placed:
            parts, _ = below.setdefault(id(child.node), ([], [(run.first, run.last) for run in child.runs]))
            parts.append(part)
        return [item for item in below.values() if item[0][0].node.children]

    def _find_units(self, node: Node) -> tuple[int, int]:
        return bisect_left(self._begins, node.begin), bisect_left(self._begins, node.end)

    def _is_anchored(self, node: Node) -> bool:
        return id(node) in self._anchors

    def _covers(self, child: Child, around: tuple[int, int], areas: list[Area], is_deep: bool) -> bool:
        """Whether an element takes all places of its parent.

        It does if it covers all words of its parent. Deep inside, more than half of the words are enough: so the time
        does not grow with the square of the depth.
        """
        if child.node.content is not None or (len(areas) > 1 and not child.node.is_repeatable):
            return False
        num_units, num_around = child.last - child.first, around[1] - around[0]
        return num_units > 0 and (num_units == num_around or (is_deep and 2 * num_units > num_around))

    def _cover(self, child: Child, areas: list[Area], taken: Taken) -> None:
        """Gives an element that covers all words of its parent all places of its parent."""
        child.runs = [Run(first, last, 0.0, 1.0) for first, last in areas]
        for first, last in areas:
            taken.add(first, last)
        child.place = Place("structure", 1.0)

    def _choose_ends(self, children: list[Child], areas: list[Area], taken: Taken) -> None:
        """Gives an element that begins before the flow the first units, and an element that ends behind it the last.

        Otherwise such an element and an element beside it would overlap. Its parent has one area.
        """
        for child in (children[0], children[-1]):
            if not areas or not child.first < child.last or not child.node.is_open:
                continue
            run = self._finder.find_end(child.first, child.last, areas[0], taken, is_left=child.node.is_open_left)
            if run is not None:
                child.runs = [run]
                child.place = Place("links", run.score)
                taken.add(run.first, run.last)

    def _choose_runs(self, children: list[Child], areas: list[Area], taken: Taken) -> None:
        """Chooses runs for all children with words: the largest gain first."""
        candidates: list[tuple[float, int, Child]] = []
        for number, child in enumerate(children):
            # A placeholder that was not copied has no words in the target.
            is_lost = child.node.content is not None and not child.node.start_tag and not self._is_anchored(child.node)
            if child.first < child.last and not is_lost and not child.node.is_open:
                run = self._finder.find_best(child.first, child.last, areas, taken)
                if run is not None:
                    candidates.append((-run.gain, number, child))
        for _, _, child in sorted(candidates, key=lambda candidate: candidate[:2]):
            if self._can_split and child.node.is_repeatable:
                runs = self._finder.find_parts(child.first, child.last, areas, taken)
            else:
                run = self._finder.find_best(child.first, child.last, areas, taken)
                runs = [run] if run else []
            if not runs:
                continue
            if child.node.content is None:
                for run in runs:
                    self._fit_punctuation(child, run, areas, taken)
            child.runs = runs
            child.place = Place("copied" if self._is_anchored(child.node) else "links", _mean(runs))
            for run in runs:
                taken.add(run.first, run.last)
        for child in children:
            if child.first < child.last and not child.runs and child.node.content is None and not child.node.is_open:
                self._fill_gap(child, areas, taken)

    def _fit_punctuation(self, child: Child, run: Run, areas: list[Area], taken: Taken) -> None:
        area = areas[find_area(areas, run.first)]
        fit_punctuation(self._units, child.first, child.last, run, area, taken)

    def _fill_gap(self, child: Child, areas: list[Area], taken: Taken) -> None:
        """Gives an element whose words have no links the units between the targets of the words beside it."""
        left, right = self._units.find_link(child.first - 1, areas), self._units.find_link(child.last, areas)
        if left is None or right is None or any(self._units.links[child.first : child.last]):
            return
        first, last = left[0] + 1, right[0]
        if first >= last or find_area(areas, first) < 0 or find_area(areas, first) != find_area(areas, last - 1):
            return
        if any(self._units.totals[first:last]) or taken.holds(first, last):
            return
        run = Run(first, last, 0.0, min(left[1], right[1]))
        self._fit_punctuation(child, run, areas, taken)
        child.runs = [run]
        child.place = Place("neighbours", run.score)
        taken.add(run.first, run.last)


def _keep_between(parents: list[Placed], placed: list[Placed]) -> None:
    """Keeps all nodes behind the end of an element that begins before the flow, and before one that ends behind it."""
    low, high = parents[0].begin, parents[-1].end
    first, last = placed[0], placed[-1]
    if first.node.is_open_left:
        first.begin, first.end = low, first.end if first.node.begin < first.node.end else low
        low = first.end
    if last.node.is_open_right:
        last.begin, last.end = last.begin if last.node.begin < last.node.end else high, high
        high = last.begin
    for part in placed:
        if part.begin == part.end and part is not first and part is not last:
            part.begin = part.end = min(max(part.begin, low), high)


def _join_touching(children: Sequence[Child]) -> list[list[Child]]:
    """Groups placeholders that the target does not have and that touch: they stay together, in their order."""
    groups: list[list[Child]] = []
    for child in children:
        last = groups[-1][-1] if groups else child
        is_lost = all(each.node.content is not None and not each.runs for each in (last, child))
        if is_lost and last is not child and last.node.end == child.node.begin:
            groups[-1].append(child)
        else:
            groups.append([child])
    return groups


def _mean(runs: Sequence[Run]) -> float:
    return sum(run.score for run in runs) / len(runs)


def _list_nodes(root: Node) -> list[Node]:
    """Returns all nodes below a node."""
    nodes: list[Node] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        nodes += node.children
        waiting += node.children
    return nodes
