"""Builds a flow from pieces: its plain text, and the tree of its elements."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from ....text import Span
from ..options import MarkupFormat
from ..parsing import Piece, is_repeatable
from .nodes import Flow, Mark, Node

FindPlaceholders = Callable[[str], list[Span]]


class FlowBuilder:
    """Builds one flow, piece by piece. All nodes are kept in a tree, without recursion.

    Attributes:
        length: How long the text is so far.
    """

    def __init__(self, markup_format: MarkupFormat, marks: list[Mark], find_placeholders: FindPlaceholders) -> None:
        """`marks` gets a mark for each element, comment and placeholder."""
        self._format: MarkupFormat = markup_format
        self._marks = marks
        self._find_placeholders = find_placeholders
        self._parts: list[str] = []
        self.length = 0
        self._root = Node(-1, 0, 0)
        self._open = [self._root]
        self._open_pieces = [-1]
        self._protected: list[Node] = []
        self._ends_with_space = True
        self._point: Node | None = None  # the last element without text

    def finish(self, begin: int) -> Flow:
        """Returns the flow. Elements that are open end behind the flow. `begin` is its place in the source text."""
        for node in self._open[1:]:
            node.end = self.length
            node.is_open_right = True
        self._root.end = self.length
        return Flow("".join(self._parts), self._root, begin, self._protected)

    def add_tag(self, number: int, piece: Piece, mark: int, is_inside: bool) -> None:
        """Adds a start tag or an end tag.

        `is_inside` says whether the partner of the tag stands in the flow. `mark` is the mark of the element.
        """
        here = self.length
        if piece.partner < 0:
            side = "right" if piece.kind == "start" else "left"
            self._open[-1].children.append(Node(mark, here, here, piece.raw, side=side))
        elif piece.kind == "start":
            can_repeat = is_inside and is_repeatable(piece, self._format)
            node = Node(mark, here, here, piece.raw, is_repeatable=can_repeat, is_visible=is_inside)
            self._open[-1].children.append(node)
            self._open.append(node)
            self._open_pieces.append(number)
        elif is_inside:
            node = self._open.pop()
            self._open_pieces.pop()
            node.end, node.end_tag = here, piece.raw
            self._point = node if node.begin == here else self._point
        else:  # the element begins before the flow: it holds all that the flow has so far
            node = Node(mark, 0, here, "", piece.raw, self._open[-1].children, is_open_left=True)
            self._open[-1].children = [node]

    def add_point(self, node: Node) -> None:
        """Adds an empty element, a comment, or an element whose contents are no part of the sentence."""
        node.begin = node.end = self.length
        self._point = node
        self._open[-1].children.append(node)

    def add_protected(self, node: Node) -> None:
        """Adds contents that are not translated. The contents are a part of the text."""
        node.begin = self.length
        self._append(node.content or "")
        node.end = self.length
        self._open[-1].children.append(node)
        self._protected.append(node)

    def add_text(self, pieces: Sequence[Piece], collapses: bool) -> None:
        """Adds texts that stand side by side. `collapses` makes one space of all white space between two words."""
        text = "".join(piece.text for piece in pieces)
        ends = list(accumulate(len(piece.text) for piece in pieces))
        done = 0
        for begin, end in self._find_placeholders(text):
            self._append_text(text[done:begin], collapses)
            raw = _cut_raw(pieces, ends, begin, end)
            self._marks.append(Mark(raw))
            self.add_protected(Node(len(self._marks) - 1, content=text[begin:end], raw_content=raw))
            done = end
        self._append_text(text[done:], collapses)

    def _append_text(self, text: str, collapses: bool) -> None:
        if collapses and text:
            words = text.split(" ") if text.isascii() and text.isalnum() else _split_white_space(text)
            text = " ".join(words)
            if self._ends_with_space and text.startswith(" "):
                text = text[1:]
                if self._point is not None and self._point.end == self.length:
                    self._point.has_space_behind = True
        self._append(text)

    def _append(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self.length += len(text)
            self._ends_with_space = text.endswith(" ")


def _split_white_space(text: str) -> list[str]:
    """Splits a text at white space of HTML. White space at an end leaves an empty string there."""
    words = [word for word in text.translate(_SPACES).split(" ") if word]
    if not words:
        return ["", ""]
    is_space_first, is_space_last = text[0] in _WHITE_SPACE, text[-1] in _WHITE_SPACE
    return [""] * is_space_first + words + [""] * is_space_last


# White space of HTML. A no-break space is none.
_WHITE_SPACE = " \t\n\f\r"
_SPACES = str.maketrans(dict.fromkeys(_WHITE_SPACE, " "))


def _cut_raw(pieces: Sequence[Piece], ends: Sequence[int], begin: int, end: int) -> str:
    """Returns a part of a text as it stands in the source. Character references are taken whole."""
    raws: list[str] = []
    number = bisect_right(ends, begin)
    while begin < end:
        piece = pieces[number]
        piece_begin = ends[number] - len(piece.text)
        last = min(end, ends[number])
        is_whole = piece.is_reference or piece.text != piece.raw
        raws.append(piece.raw if is_whole else piece.text[begin - piece_begin : last - piece_begin])
        begin = ends[number]
        number += 1
    return "".join(raws)
