"""Units: the words of a flow and of its target, cut so that each unit lies inside or outside of each element.

A word is cut where an element begins or ends inside the word. What is not translated is one unit.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from ....text import Span
from ...links import Link
from ..flows import Flow, Node
from .white_space import WhiteSpace

Area = tuple[int, int]
"""A range of target units that an element may lie in."""


# A word with more parts is not compared with its target, and not all its parts are linked with one another.
_MAX_WORD_PARTS = 32


@dataclass(slots=True)
class LinkedFlow:
    """A flow with its target.

    Attributes:
        target_text: The target of the flow, without markup.
        source_words: The words of the flow. Offsets count in the text of the flow.
        target_words: The words of the target. Offsets count in `target_text`.
        links: Links between the numbers of both.
        anchors: For nodes with `content`: where the target has the content, or a stand-in of the content.
        guesses: Weak links of source words that have no link.
    """

    target_text: str
    source_words: list[Span]
    target_words: list[Span]
    links: list[Link]
    anchors: list[tuple[Node, Span]] = field(default_factory=list[tuple[Node, Span]])
    guesses: list[Link] = field(default_factory=list[Link])


@dataclass(slots=True)
class Units:
    """The units of a flow and of its target, with their links.

    Attributes:
        source: The source units, ascending.
        target: The target units, ascending.
        links: For each source unit: its links, as (target unit, score).
        totals: For each target unit: the sum of the scores of its links.
        anchored: The source units that are anchored.
        source_text: The text of the flow.
        target_text: The target of the flow.
        source_space: The white space of the first text.
        target_space: The white space of the second text.
    """

    source: list[Span]
    target: list[Span]
    links: list[list[tuple[int, float]]]
    totals: list[float]
    anchored: set[int]
    source_text: str
    target_text: str
    source_space: WhiteSpace = field(init=False)
    target_space: WhiteSpace = field(init=False)

    def __post_init__(self) -> None:
        self.source_space, self.target_space = WhiteSpace(self.source_text), WhiteSpace(self.target_text)

    def is_mark(self, unit: int) -> bool:
        """Whether a source unit is a punctuation mark or a symbol."""
        begin, end = self.source[unit]
        return is_punctuation(self.source_text[begin:end])

    def is_target_mark(self, unit: int) -> bool:
        """Whether a target unit is a punctuation mark or a symbol."""
        begin, end = self.target[unit]
        return is_punctuation(self.target_text[begin:end])

    def find_link(self, unit: int, areas: Sequence[Area]) -> tuple[int, float] | None:
        """Returns the target unit in `areas` that a source unit is linked with best, and the score."""
        if not 0 <= unit < len(self.links):
            return None
        links = [link for link in self.links[unit] if find_area(areas, link[0]) >= 0]
        return max(links, key=lambda link: link[1]) if links else None


def make_units(flow: Flow, nodes: Sequence[Node], linked: LinkedFlow) -> Units:
    """Cuts the words of a flow and of its target, and carries the links over to the units."""
    boundaries = sorted({offset for node in nodes for offset in (node.begin, node.end)})
    protected = [(node.begin, node.end) for node in flow.protected]
    anchors = sorted(span for _, span in linked.anchors)
    source, source_parts = _cut(linked.source_words, boundaries, protected)
    copies = _copy_boundaries(flow.text, linked, boundaries)
    anchor_bounds = {offset for span in anchors for offset in span}
    target, target_parts = _cut(linked.target_words, sorted(anchor_bounds | copies), anchors)
    scores: dict[tuple[int, int], float] = {}
    # What is not translated and touches a word is a part of the word, but no part of its links.
    wholes = _find_numbers(source, protected)
    for link in [*linked.links, *linked.guesses]:
        parts = source_parts[link.source]
        own = [unit for unit in parts if unit not in wholes] if wholes else []
        for pair in _pair_parts(own or parts, target_parts[link.target]):
            scores[pair] = max(scores.get(pair, 0.0), link.score)
    anchored = _link_anchors(linked, source, target, scores)
    links: list[list[tuple[int, float]]] = [[] for _ in source]
    totals = [0.0] * len(target)
    for (source_unit, target_unit), score in sorted(scores.items()):
        links[source_unit].append((target_unit, score))
        totals[target_unit] += score
    return Units(source, target, links, totals, anchored, flow.text, linked.target_text)


def find_area(areas: Sequence[Area], unit: int) -> int:
    """Returns the number of the area that holds a target unit; -1: none does. Areas ascend."""
    number = bisect_right(areas, (unit, inf)) - 1
    return number if number >= 0 and unit < areas[number][1] else -1


def is_punctuation(text: str) -> bool:
    """Whether a text has punctuation marks and symbols only."""
    return all(unicodedata.category(character)[0] in "PS" for character in text)


def _cut(words: Sequence[Span], boundaries: Sequence[int], wholes: Sequence[Span]) -> tuple[list[Span], list[range]]:
    """Cuts words at boundaries. Each span of `wholes` is a unit.

    Returns the units, and for each word the numbers of its units.
    """
    whole_begins = [begin for begin, _ in wholes]
    units: set[Span] = {(begin, end) for begin, end in wholes if begin < end}
    for begin, end in words:
        inner = boundaries[bisect_right(boundaries, begin) : bisect_left(boundaries, end)]
        for part in pairwise([begin, *inner, end]):
            whole = bisect_right(whole_begins, part[0]) - 1
            if whole < 0 or wholes[whole][1] <= part[0]:
                following = wholes[whole + 1][0] if whole + 1 < len(wholes) else part[1]
                if part[0] < min(part[1], following):
                    units.add((part[0], min(part[1], following)))
            elif wholes[whole][1] < part[1]:
                units.add((wholes[whole][1], part[1]))
    ordered = sorted(units)
    begins = [begin for begin, _ in ordered]
    ends = [end for _, end in ordered]
    return ordered, [range(bisect_right(ends, begin), bisect_left(begins, end)) for begin, end in words]


def _copy_boundaries(text: str, linked: LinkedFlow, boundaries: Sequence[int]) -> set[int]:
    """Returns boundaries inside target words: where the target word has the same beginning or end as the source word.

    So `Micro<b>soft</b>` keeps its boundary, and the boundary of a word that is translated stands beside the word.
    """
    found: set[int] = set()
    for link in linked.links:
        begin, end = linked.source_words[link.source]
        first, last = bisect_right(boundaries, begin), bisect_left(boundaries, end)
        if first == last or last - first > _MAX_WORD_PARTS:
            continue
        target_begin, target_end = linked.target_words[link.target]
        word, target = text[begin:end], linked.target_text[target_begin:target_end]
        if word == target:
            found.update(target_begin + boundary - begin for boundary in boundaries[first:last])
            continue
        for boundary in boundaries[first:last]:
            head, tail = word[: boundary - begin], word[boundary - begin :]
            if len(head) > 1 and target.startswith(head) and len(head) < len(target):
                found.add(target_begin + len(head))
            elif len(tail) > 1 and target.endswith(tail) and len(tail) < len(target):
                found.add(target_end - len(tail))
    return found


def _find_numbers(units: Sequence[Span], spans: Sequence[Span]) -> set[int]:
    """Returns the numbers of the units that are among the spans."""
    wanted = set(spans)
    return {number for number, unit in enumerate(units) if unit in wanted} if wanted else set()


def _pair_parts(source: Sequence[int], target: Sequence[int]) -> list[tuple[int, int]]:
    """Links the parts of two words: one by one where both have as many parts or very many, otherwise each with each."""
    if len(source) == len(target):
        return list(zip(source, target, strict=True))
    if len(source) * len(target) > _MAX_WORD_PARTS and target:
        return [(unit, target[number * len(target) // len(source)]) for number, unit in enumerate(source)]
    return [(source_unit, target_unit) for source_unit in source for target_unit in target]


def _link_anchors(
    linked: LinkedFlow, source: list[Span], target: list[Span], scores: dict[tuple[int, int], float]
) -> set[int]:
    """Links each anchored node with its anchor, and with nothing else. Returns the anchored source units."""
    numbers = {span: number for number, span in enumerate(source)}
    target_numbers = {span: number for number, span in enumerate(target)}
    pairs = {numbers[node.begin, node.end]: target_numbers[anchor] for node, anchor in linked.anchors}
    anchors = set(pairs.values())
    for pair in [pair for pair in scores if pair[0] in pairs or pair[1] in anchors]:
        del scores[pair]
    scores.update(dict.fromkeys(pairs.items(), 1.0))
    return set(pairs)
