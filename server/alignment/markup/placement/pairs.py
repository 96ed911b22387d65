"""From the targets of segments to the targets of flows.

The sentences of a flow are joined. A target that the client gives belongs to all flows: it is divided by its lines if
it has a line for each flow, otherwise where the fewest links cross.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from ....text import Span, find_words
from ...links import Link
from ..flows import Flow, Node, Sentence, StandIn
from ..options import LinkedSegment
from .units import LinkedFlow, is_punctuation

# The fewest characters of a content that is found in other case and white space.
_MIN_FOLDED = 4


def join_sentences(flow: Flow, pairs: Iterator[LinkedSegment]) -> LinkedFlow:
    """Joins the targets of the sentences of a flow, with what the source has between the sentences.

    A sentence without words for the model, such as a number, is its own target, and each word is linked with itself.
    """
    joined = LinkedFlow("", [], [], [])
    parts: list[str] = []
    length = done = 0
    for sentence in flow.sentences:
        between = flow.text[done : sentence.begin]
        parts.append(between)
        length += len(between)
        done = sentence.end
        if sentence.text:
            pair = next(pairs)
            anchors = _find_stand_ins(sentence.stand_ins, pair.target_text)
        else:
            pair = _link_with_itself(flow.text[sentence.begin : sentence.end])
            anchors = [
                (node, (node.begin - sentence.begin, node.end - sentence.begin))
                for node in flow.protected
                if sentence.begin <= node.begin < node.end <= sentence.end
            ]
        target = pair.target_text
        num_source, num_target = len(joined.source_words), len(joined.target_words)
        joined.source_words += _restore_words(sentence, pair.source_words)
        joined.target_words += [(begin + length, end + length) for begin, end in pair.target_words]
        joined.links += _shift(pair.links, num_source, num_target)
        joined.guesses += _shift(pair.guesses, num_source, num_target)
        joined.anchors += [(node, (begin + length, end + length)) for node, (begin, end) in anchors]
        parts.append(target)
        length += len(target)
    parts.append(flow.text[done:])
    joined.target_text = "".join(parts)
    return joined


def divide_target(flows: Sequence[Flow], pair: LinkedSegment) -> list[tuple[LinkedFlow, Span]]:
    """Divides a target among all flows. Returns for each flow its target, and the place of its target."""
    text, words = pair.target_text, pair.target_words
    flow_begins = [flow.begin for flow in flows]
    flow_of = [max(bisect_right(flow_begins, begin) - 1, 0) for begin, _ in pair.source_words]
    cuts = _cut_at_lines(text, words, len(flows)) or _cut_at_links(text, words, pair.links, flow_of, len(flows))
    links_of, guesses_of = _sort_links(pair.links, flow_of, cuts), _sort_links(pair.guesses, flow_of, cuts)
    divided: list[tuple[LinkedFlow, Span]] = []
    begins = [0, *(words[cut][0] if cut < len(words) else len(text) for cut in cuts[1:-1]), len(text)]
    for number, flow in enumerate(flows):
        first, last, begin = cuts[number], cuts[number + 1], begins[number]
        end = len(text) if number == len(flows) - 1 else max(begin, words[last - 1][1] if last > first else begin)
        first_source = bisect_left(flow_of, number)
        source = [
            (max(word[0] - flow.begin, 0), min(word[1] - flow.begin, len(flow.text)))
            for word in pair.source_words[first_source : bisect_right(flow_of, number)]
        ]
        target = [(word[0] - begin, word[1] - begin) for word in words[first:last]]
        links = _shift(links_of[number], -first_source, -first)
        linked = LinkedFlow(text[begin:end], source, target, links)
        linked.guesses = _shift(guesses_of[number], -first_source, -first)
        linked.anchors = _find_copies(flow.protected, linked.target_text)
        divided.append((linked, (begin, end)))
    return divided


def _link_with_itself(text: str) -> LinkedSegment:
    words = find_words(text)
    return LinkedSegment(text, words, words, [Link(number, number, 1.0) for number in range(len(words))])


def _shift(links: Iterable[Link], num_source: int, num_target: int) -> list[Link]:
    """Returns links with other numbers of words."""
    return [Link(link.source + num_source, link.target + num_target, link.score) for link in links]


def _sort_links(links: Sequence[Link], flow_of: Sequence[int], cuts: Sequence[int]) -> list[list[Link]]:
    """Returns for each flow the links whose both words it has."""
    links_of: list[list[Link]] = [[] for _ in cuts[1:]]
    for link in links:
        number = flow_of[link.source]
        if cuts[number] <= link.target < cuts[number + 1]:
            links_of[number].append(link)
    return links_of


# ---- what was copied ------------------------------------------------------------------------------------------------


def _find_stand_ins(stand_ins: Sequence[StandIn], target: str) -> list[tuple[Node, Span]]:
    """Finds each stand-in in the target. A letter may follow, such as the s of a genitive."""
    found: list[tuple[Node, Span]] = []
    for stand_in in stand_ins:
        match = re.search(rf"(?<!\w){stand_in.text}(?=s?(?!\w))", target)
        if match:
            found.append((stand_in.node, match.span()))
    return sorted(found, key=lambda item: item[1])


def _restore_words(sentence: Sentence, words: Sequence[Span]) -> list[Span]:
    """Returns where the words that the model has read stand in the text of the flow."""
    begins = [stand_in.begin for stand_in in sentence.stand_ins]

    def restore(offset: int, is_end: bool) -> int:
        number = bisect_right(begins, offset - is_end) - 1
        if number < 0:
            return sentence.begin + offset
        node, text, begin = sentence.stand_ins[number]
        if offset - is_end < begin + len(text):
            return node.end if is_end else node.begin
        return node.end + offset - begin - len(text)

    return [(restore(begin, is_end=False), restore(end, is_end=True)) for begin, end in words]


def _find_copies(nodes: Sequence[Node], target: str) -> list[tuple[Node, Span]]:
    """Finds contents that a target has copied, each at most once: as they are, or in other case and white space."""
    is_taken = bytearray(len(target))
    found: list[tuple[Node, Span]] = []
    lost: list[Node] = []
    _search(nodes, target, range(len(target)), is_taken, found, lost, lambda node: node.content or "")
    if lost:
        folded, offsets = _fold(target)
        _search(lost, folded, offsets, is_taken, found, [], _fold_content)
    return sorted(found, key=lambda item: item[1])


def _search(
    nodes: Sequence[Node],
    target: str,
    offsets: Sequence[int],
    is_taken: bytearray,
    found: list[tuple[Node, Span]],
    lost: list[Node],
    read_content: Callable[[Node], str],
) -> None:
    """Finds the first copy of each node that no other node has. `offsets` are those of the characters of `target`."""
    ends: dict[str, int] = {}
    for node in nodes:
        content = read_content(node)
        begin = target.find(content, ends.get(content, 0)) if content else -1
        while begin >= 0 and is_taken.find(1, offsets[begin], offsets[begin + len(content) - 1] + 1) >= 0:
            begin = target.find(content, begin + 1)
        if begin < 0:
            ends[content] = len(target)
            lost.append(node)
            continue
        ends[content] = begin + len(content)
        span = offsets[begin], offsets[begin + len(content) - 1] + 1
        is_taken[span[0] : span[1]] = b"\1" * (span[1] - span[0])
        found.append((node, span))


def _fold_content(node: Node) -> str:
    """Returns the content to search for without case and white space. Short ones would be found by chance."""
    content, _ = _fold(node.content or "")
    return content if len(content) >= _MIN_FOLDED else ""


def _fold(text: str) -> tuple[str, list[int]]:
    """Returns a text in small letters without white space, and the offset of each character."""
    folded = [
        (small, offset)
        for offset, character in enumerate(text)
        if not character.isspace()
        for small in character.lower()
    ]
    return "".join(small for small, _ in folded), [offset for _, offset in folded]


# ---- where a target is divided --------------------------------------------------------------------------------------


def _cut_at_lines(text: str, words: Sequence[Span], num_flows: int) -> list[int] | None:
    """Returns the first target word of each line, and the number of words; None unless each flow has a line."""
    breaks = [number + 1 for number, (left, right) in enumerate(pairwise(words)) if "\n" in text[left[1] : right[0]]]
    return [0, *breaks, len(words)] if len(breaks) == num_flows - 1 else None


def _cut_at_links(
    text: str, words: Sequence[Span], links: Sequence[Link], flow_of: Sequence[int], num_flows: int
) -> list[int]:
    """Returns the first target word of each flow, and the number of words.

    The middle flow is divided from the flows before, then both halves in the same way, so the time is
    O((words + links) log flows).
    """
    cuts = [0] * num_flows + [len(words)]
    waiting = [(0, num_flows, 0, len(words), [(flow_of[link.source], link.target, link.score) for link in links])]
    while waiting:
        first_flow, last_flow, first, last, inside = waiting.pop()
        if last_flow - first_flow < 2:
            continue
        middle = (first_flow + last_flow) // 2
        cut = _find_cut(text, words, first, last, [(flow < middle, target, score) for flow, target, score in inside])
        cuts[middle] = cut
        left = [item for item in inside if item[0] < middle and item[1] < cut]
        right = [item for item in inside if item[0] >= middle and item[1] >= cut]
        waiting += [(first_flow, middle, first, cut, left), (middle, last_flow, cut, last, right)]
    return cuts


def _find_cut(text: str, words: Sequence[Span], first: int, last: int, links: list[tuple[bool, int, float]]) -> int:
    """Returns the target word from which on links come from the right side: the fewest links cross.

    Words without links between both sides belong to the right side, punctuation marks to the left side.
    """
    gains = [0.0] * (last - first + 1)
    for is_left, target, score in links:
        gains[target - first + 1] += score if is_left else -score
    best, total, cut = 0.0, 0.0, first
    for number in range(1, len(gains)):
        total += gains[number]
        if total > best + 1e-9:
            best, cut = total, first + number
    linked = {target for _, target, _ in links}
    while cut < last and cut > first and cut not in linked and is_punctuation(text[words[cut][0] : words[cut][1]]):
        cut += 1
    return cut
