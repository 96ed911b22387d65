"""Writes the target twice: with its markup, and without."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....text import Span
from ..flows import Kept, Node
from ..options import MarkupFormat
from ..parsing import Piece
from .placed import Placed, walk
from .spacing import MAX_BESIDE, TargetSpacing, find_put
from .units import LinkedFlow

# Characters that are never written as a reference, whatever the source has.
_ESCAPED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def make_escapes(pieces: Iterable[Piece], markup_format: MarkupFormat) -> dict[int, str]:
    """Returns how characters are written. A character that the source writes as a reference is written so again."""
    if markup_format in ("spans", "placeholders"):
        return {}
    escapes = {ord(character): reference for character, reference in _ESCAPED.items()}
    for piece in pieces:
        is_reference = piece.is_reference and len(piece.text) == 1 and piece.raw.endswith(";")
        if is_reference and (not piece.text.isascii() or piece.text in "&<>\"'"):
            escapes.setdefault(ord(piece.text), piece.raw)
            if piece.text in _ESCAPED and escapes[ord(piece.text)] == _ESCAPED[piece.text]:
                escapes[ord(piece.text)] = piece.raw
    return escapes


@dataclass(slots=True)
class _Move:
    """Where a part of the target of a flow stands in the target text."""

    begin: int
    end: int
    new_begin: int
    new_end: int
    is_copy: bool


class TargetWriter:
    """Writes kept pieces and flows, one after another.

    Attributes:
        spans: By the number of the mark: the part of the target text that it covers.
        length: How long the target text is so far.
    """

    def __init__(self, escapes: dict[int, str], num_marks: int, keeps_points: bool) -> None:
        """`keeps_points` says whether elements without words keep white space on both sides, as in the source."""
        self._escapes = escapes
        self._keeps_points = keeps_points
        self._spacing = TargetSpacing("")
        self._marked: list[str] = []
        self._plain: list[str] = []
        self.length = 0
        self._begins = [-1] * num_marks
        self._ends = [-1] * num_marks
        self._pending: list[int] = []

    def finish(self) -> tuple[str, str, list[Span]]:
        """Returns the target with markup, the target without, and the span of each mark."""
        self._settle()
        spans = [
            (min(begin, end), end) if end >= 0 else (max(begin, 0), self.length)
            for begin, end in zip(self._begins, self._ends, strict=True)
        ]
        return "".join(self._marked), "".join(self._plain), spans

    def keep(self, kept: Kept) -> None:
        """Writes a piece that stands between flows."""
        self._marked.append(kept.raw)
        self._pending += kept.begins
        for mark in kept.ends:
            self._ends[mark] = self.length

    def separate(self, text: str) -> None:
        """Adds what stands between two flows to the text without markup."""
        self._plain.append(text)
        self.length += len(text)

    def write(self, source: str, linked: LinkedFlow, root: Placed) -> list[Span]:
        """Writes the target of a flow, whose text is `source`. Returns where its words stand in the target text."""
        self._settle()
        self._spacing = TargetSpacing(source)
        target, dropped, put = linked.target_text, _find_dropped(linked, root), find_put(root, self._keeps_points)
        moves: list[_Move] = []
        written = 0
        for part, is_begin in walk(root):
            offset = part.begin if is_begin else part.end
            is_put = id(part) in put
            if not is_begin and part.node.content is not None:
                self._write_content(part, moves)
                self._spacing.add(part.node, is_put)
                written = part.end
                continue
            written = self._write_text(target, written, offset, dropped, moves)
            if part is root:
                continue
            if is_begin and (is_put or part.begin < part.end):
                is_node = is_put or part.node.content is not None
                self._write_space(part.node if is_node else target[offset : offset + MAX_BESIDE], is_put)
            self._note(part, is_begin)
            self._marked.append(part.node.start_tag if is_begin else part.node.end_tag)
            if not is_begin and is_put and part.node.begin == part.node.end:
                self._spacing.add(part.node, is_put)
        return [_move(word, moves, self.length) for word in linked.target_words]

    def _settle(self) -> None:
        for mark in self._pending:
            self._begins[mark] = self.length
        self._pending = []

    def _note(self, part: Placed, is_begin: bool) -> None:
        """Notes where a mark begins and ends. The first part of a repeated element counts."""
        mark = part.node.mark
        if mark < 0:
            return
        for inner in [mark, *part.node.inner_marks]:
            if is_begin and self._begins[inner] < 0:
                self._begins[inner] = self.length
            elif not is_begin and self._ends[inner] < 0 and (part.node.end_tag or self._begins[inner] == self.length):
                self._ends[inner] = self.length

    def _write_text(self, target: str, begin: int, end: int, dropped: Sequence[Span], moves: list[_Move]) -> int:
        """Writes a part of the target, without the parts that are dropped."""
        for gap_begin, gap_end in [*dropped[_first_after(dropped, begin) :], (end, end)]:
            last = min(gap_begin, end)
            if begin < last:
                text = target[begin:last]
                self._write_space(target[begin : begin + MAX_BESIDE], is_put=False)
                self._spacing.add(text, is_put=False)
                moves.append(_Move(begin, last, self.length, self.length + last - begin, is_copy=True))
                self._marked.append(text.translate(self._escapes) if self._escapes else text)
                self._plain.append(text)
                self.length += last - begin
            if gap_begin >= end:
                break
            begin = max(gap_end, begin)
        return max(begin, end)

    def _write_space(self, right: Node | str, is_put: bool) -> None:
        """Writes the white space that is missing before a node or a text."""
        if space := self._spacing.find_space(right, is_put):
            self._marked.append(space.translate(self._escapes))
            self._plain.append(space)
            self.length += len(space)
            self._spacing.add(space, is_put=False)

    def _write_content(self, part: Placed, moves: list[_Move]) -> None:
        """Writes what is not translated in the place of what the target has there."""
        node = part.node
        content = node.content or ""
        self._marked += (node.raw_content, node.end_tag)
        self._plain.append(content)
        moves.append(_Move(part.begin, part.end, self.length, self.length + len(content), is_copy=False))
        self.length += len(content)
        for inner in [node.mark, *node.inner_marks]:
            self._ends[inner] = self.length


def _find_dropped(linked: LinkedFlow, root: Placed) -> list[Span]:
    """Returns the anchors whose nodes stand elsewhere: each content stands in the target once."""
    used = {id(part.node): (part.begin, part.end) for part, is_begin in walk(root) if is_begin}
    return sorted(span for node, span in linked.anchors if used.get(id(node)) != span)


def _first_after(spans: Sequence[Span], offset: int) -> int:
    """Returns the number of the first span that ends after an offset."""
    return bisect_right(spans, offset, key=lambda span: span[1])


def _move(word: Span, moves: Sequence[_Move], end: int) -> Span:
    """Returns where a word stands in the target text."""
    begin_move = _find_move(word[0], moves)
    end_move = _find_move(word[1] - 1, moves)
    if begin_move is None or end_move is None:
        return end, end
    begin = begin_move.new_begin + (word[0] - begin_move.begin if begin_move.is_copy else 0)
    last = end_move.new_begin + word[1] - end_move.begin if end_move.is_copy else end_move.new_end
    begin = max(begin_move.new_begin, min(begin, begin_move.new_end))
    return begin, max(begin, min(last, end_move.new_end))


def _find_move(offset: int, moves: Sequence[_Move]) -> _Move | None:
    """Returns the move of a character; of a character that is dropped, the move before, or else the first one."""
    number = bisect_right(moves, offset, key=lambda move: move.begin) - 1
    while number > 0 and moves[number].begin == moves[number].end:
        number -= 1
    return moves[number] if number >= 0 else moves[0] if moves else None
