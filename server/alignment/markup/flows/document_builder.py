"""Builds a document from pieces: flows, and what is kept between flows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ..options import MarkupFormat, MarkupOptions
from ..parsing import (
    Piece,
    PlaceholderFinder,
    check_count,
    find_blocks,
    is_hidden,
    is_preformatted,
    is_verbatim,
    match_tags,
    pair_name,
)
from .flow_builder import FlowBuilder
from .nodes import Flow, Kept, Mark, Node
from .sentences import divide_flow

# What stands between two flows in the source text.
SEPARATOR = "\n"

_LINE_BREAK = re.compile(r"(\r\n|\r|\n)")


@dataclass(slots=True)
class _Item:
    """A piece, or pieces that are kept together: an element whose contents are not translated, or an entity."""

    piece: Piece
    inner: list[Piece]
    is_point: bool = False


class DocumentBuilder:
    """Builds the parts of one document.

    Attributes:
        parts: Flows and kept pieces, in the order of the source.
        marks: The marks of all elements, comments and placeholders, in the order of the source.
        length: How long the source text is.
    """

    def __init__(self, options: MarkupOptions) -> None:
        self._options = options
        self._format: MarkupFormat = options.format
        wants_placeholders = options.has_placeholders or options.format == "placeholders"
        finder = PlaceholderFinder(options.placeholder_pattern)
        self._find_placeholders = finder.find if wants_placeholders or options.placeholder_pattern else _find_nothing
        self.parts: list[Flow | Kept] = []
        self.marks: list[Mark] = []
        self.length = 0
        self._items: list[_Item] = []
        self._num_counting = [0]
        self._mark_of: dict[int, int] = {}
        self._pending: list[int] = []

    def build(self, pieces: list[Piece]) -> None:
        """Divides the pieces into flows. Lines are flows where line breaks count."""
        self._items = _join_verbatim(pieces, self._options)
        self._num_counting = [0, *accumulate(map(_counts, self._items))]
        tags = [item.piece for item in self._items]
        match_tags(tags)
        blocks = find_blocks(tags, self._format)
        preformatted = self._format not in ("html", "xml")
        depths: list[int] = []
        begin = 0
        for number, piece in enumerate(tags):
            is_line_end = piece.kind == "text" and (preformatted or depths) and piece.text == "\n"
            if blocks[number] or is_line_end:
                self._add_flow(begin, number, not (preformatted or depths))
                self._keep(number)
                begin = number + 1
            if piece.kind == "start" and piece.partner >= 0 and is_preformatted(piece):
                depths.append(piece.partner)
            elif depths and number == depths[-1]:
                depths.pop()
        self._add_flow(begin, len(tags), not (preformatted or bool(depths)))
        if self._options.has_target and not any(isinstance(part, Flow) for part in self.parts):
            self._add_empty_flow()
        self._settle(self.length)

    def _add_empty_flow(self) -> None:
        """Adds a place for a given target where the source has no words: before the first end tag."""
        number = next((number for number, item in enumerate(self._items) if item.piece.kind == "end"), len(self.parts))
        flow = Flow("", Node(-1))
        flow.sentences = divide_flow(flow, self._options)
        self.parts.insert(number, flow)

    # ---- what is kept -----------------------------------------------------------------------------------------------

    def _keep(self, number: int) -> None:
        """Keeps an item as it stands."""
        item = self._items[number]
        kept = Kept(item.piece.raw)
        if item.piece.kind == "end":
            if item.piece.partner >= 0:
                kept.ends.append(self._mark_of[item.piece.partner])
            else:
                kept.begins.append(self._new_mark(number, item.piece.raw))
                kept.ends.append(kept.begins[0])
        elif item.piece.kind != "text":
            kept.begins.append(self._new_mark(number, item.piece.raw if not item.inner else item.inner[0].raw))
            kept.begins += self._mark_inner(item)
            if item.piece.kind == "empty" or item.piece.partner < 0:
                kept.ends += kept.begins
        self._pending += kept.begins
        for mark in kept.ends:
            self.marks[mark].end = self.length
        self.parts.append(kept)

    def _settle(self, begin: int) -> None:
        """Sets where the elements begin whose start tags stand before a flow."""
        for number in self._pending:
            mark = self.marks[number]
            mark.begin = begin if mark.end < 0 else min(begin, mark.end)
        self._pending = []

    def _new_mark(self, number: int, markup: str) -> int:
        self.marks.append(Mark(markup))
        check_count(len(self.marks))
        self._mark_of[number] = len(self.marks) - 1
        return len(self.marks) - 1

    def _mark_inner(self, item: _Item) -> list[int]:
        """Adds marks for the elements inside an element whose contents are kept."""
        begin = len(self.marks)
        self.marks += [Mark(piece.raw) for piece in item.inner[1:] if piece.kind in ("start", "empty")]
        return list(range(begin, len(self.marks)))

    # ---- flows ------------------------------------------------------------------------------------------------------

    def _add_flow(self, begin: int, end: int, collapses: bool) -> None:
        """Adds the flow of some items. What stands around its text, and around the whole text, is kept."""
        if not self._has_words(begin, end):
            for number in range(begin, end):
                self._keep(number)
            return
        first, last = begin, end
        while self._is_edge(first, first + 1, last, is_first=True):
            first += 1
        while self._is_edge(last - 1, first, last - 1, is_first=False):
            last -= 1
        for number in range(begin, first):
            self._keep(number)
        if self.length:
            self.length += len(SEPARATOR)
        self._settle(self.length)
        flow = self._build_flow(first, last, collapses)
        self.parts.append(flow)
        self.length += len(flow.text)
        for number in range(last, end):
            self._keep(number)

    def _has_words(self, begin: int, end: int) -> bool:
        if self._options.has_target:
            return self._num_counting[begin] < self._num_counting[end]
        return any(item.piece.kind == "text" and _counts(item) for item in self._items[begin:end])

    def _is_edge(self, number: int, begin: int, end: int, is_first: bool) -> bool:
        """Whether an item at an end of a flow stays there: white space, a point, a tag around the whole flow."""
        item = self._items[number]
        if item.piece.kind == "text":
            return not item.piece.text.strip()
        if item.inner:
            return item.is_point
        if item.piece.kind == "empty":
            return True
        partner = item.piece.partner
        is_outside = partner < begin or partner >= end
        if partner < 0:
            return (item.piece.kind == "start") == is_first
        if is_outside:  # the partner is kept already, or stands in another flow
            return (item.piece.kind == "start") == is_first
        return is_first and self._num_counting[partner + 1] == self._num_counting[end]

    def _build_flow(self, first: int, last: int, collapses: bool) -> Flow:
        builder = FlowBuilder(self._format, self.marks, self._find_placeholders)
        texts: list[Piece] = []
        for number in range(first, last):
            item = self._items[number]
            piece = item.piece
            if piece.kind == "text":
                texts.append(piece)
                continue
            builder.add_text(texts, collapses)
            texts = []
            here = self.length + builder.length
            if item.inner and not item.is_point:
                self._add_protected(builder, number, item)
            elif item.inner or piece.kind == "empty":
                mark = self._new_mark(number, item.inner[0].raw if item.inner else piece.raw)
                is_visible = piece.is_element and (not item.inner or self._format == "xliff")
                node = Node(mark, start_tag=piece.raw, is_visible=is_visible, inner_marks=self._mark_inner(item))
                builder.add_point(node)
                for inner in [mark, *node.inner_marks]:
                    self.marks[inner].begin = self.marks[inner].end = here
            elif piece.kind == "start" or piece.partner < 0:
                mark = self._new_mark(number, piece.raw)
                self.marks[mark].begin = here
                if piece.partner < 0:
                    self.marks[mark].end = here
                builder.add_tag(number, piece, mark, first <= piece.partner < last)
            else:
                mark = self._mark_of[piece.partner]
                self.marks[mark].end = here
                builder.add_tag(number, piece, mark, first <= piece.partner < last)
        builder.add_text(texts, collapses)
        flow = builder.finish(self.length)
        for node in flow.protected:
            mark = self.marks[node.mark]
            mark.begin, mark.end = self.length + node.begin, self.length + node.end
        flow.sentences = divide_flow(flow, self._options)
        return flow

    def _add_protected(self, builder: FlowBuilder, number: int, item: _Item) -> None:
        mark = self._new_mark(number, item.inner[0].raw)
        content = "".join(piece.text for piece in item.inner)
        here = self.length + builder.length
        inner_marks = self._mark_inner(item)
        if item.piece.is_reference:
            node = Node(mark, content=content, raw_content=item.piece.raw)
        else:
            raw = "".join(piece.raw for piece in item.inner[1:-1])
            node = Node(mark, 0, 0, item.inner[0].raw, item.inner[-1].raw, [], content, raw, inner_marks=inner_marks)
        builder.add_protected(node)
        for inner in inner_marks:
            self.marks[inner].begin, self.marks[inner].end = here, here + len(content)


def _counts(item: _Item) -> bool:
    """Whether an item adds words to a flow."""
    return bool(item.inner) and not item.is_point if item.piece.kind != "text" else bool(item.piece.text.strip())


def _find_nothing(_: str) -> list[tuple[int, int]]:
    return []


def _join_verbatim(pieces: list[Piece], options: MarkupOptions) -> list[_Item]:
    """Joins the pieces of each element whose contents are kept. Both ends of a pair of XLIFF become tags."""
    match_tags(pieces)
    items: list[_Item] = []
    number = 0
    while number < len(pieces):
        piece = pieces[number]
        inner: list[Piece] = []
        if piece.kind == "start" and is_verbatim(piece, options.format):
            is_hiding = is_hidden(piece, options.format)
            last = piece.partner if piece.partner >= 0 or not is_hiding else len(pieces) - 1
            inner = pieces[number : last + 1] if last >= 0 else []
        elif piece.kind == "empty" and piece.is_reference:
            inner = [piece]
        joined = _join(piece, inner, options) if inner else _Item(piece, [])
        if options.format == "xliff" and (pair := pair_name(piece)):
            joined = _Item(Piece("start" if pair[0] == "start" else "end", joined.piece.raw, "", pair[1]), [])
        items += [_Item(line, []) for line in _split_lines(piece)] if piece.kind == "text" else [joined]
        number += max(len(inner), 1)
    return items


def _split_lines(piece: Piece) -> Iterator[Piece]:
    """Yields the lines of a text, the breaks between them, and the white space at their ends."""
    lines = _LINE_BREAK.split(piece.raw)
    if piece.is_reference or "".join(map(_read_line, lines)) != piece.text:
        yield piece
        return
    for line in lines:
        inner = line.strip()
        begin = line.index(inner) if inner else len(line)
        for part in (line[:begin], inner, line[begin + len(inner) :]):
            if part:
                yield Piece("text", part, _read_line(part))


def _read_line(line: str) -> str:
    return "\n" if line in ("\r", "\r\n") else line


def _join(piece: Piece, inner: list[Piece], options: MarkupOptions) -> _Item:
    raw = "".join(part.raw for part in inner)
    content = "".join(part.text for part in inner)
    is_point = is_hidden(piece, options.format) or not content.strip()
    joined = Piece("empty", raw, "", piece.name, piece.attributes, piece.is_reference, piece.is_element)
    return _Item(joined, inner, is_point)
