"""White space beside what is put into a target: placeholders that a model lost, and elements without words.

The source says where white space is. A target has no white space at a place where it had no placeholder.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from ....text import is_unspaced
from ..flows import Node
from .placed import Placed, walk

# Marks that belong to the word before them, to the word behind them, and to either.
_CLOSING = frozenset(".,;:!?…")
_OPENING = frozenset("¿¡")
_EITHER = frozenset("\"'“”„‘’‚«»‹›%‰")
_SPACES = frozenset(" \u00a0\u202f")
# How much of a text beside a node is looked at: a mark, and the character behind it.
MAX_BESIDE = 2


def find_put(root: Placed, keeps_points: bool) -> set[int]:
    """Returns the ids of the parts that are put into a target, and of the parts without text around these.

    They are contents that the target does not have, and elements without words if `keeps_points`.
    """
    put: set[int] = set()
    around: list[Placed] = []
    for part, is_begin in walk(root):
        if not is_begin:
            around.pop()
            continue
        around.append(part)
        node = part.node
        is_point = keeps_points and node.is_visible and node.begin == node.end
        if not (node.content or is_point):
            continue
        for outer in reversed(around):
            if outer.begin < outer.end or id(outer) in put:
                break
            put.add(id(outer))
    return put


class TargetSpacing:
    """The white space of the target of one flow, which is written from left to right."""

    def __init__(self, source: str) -> None:
        """`source` is the text of the flow."""
        self._source = source
        self._left: Node | str = ""  # what stands last: a node, or a text
        self._is_put = False

    def find_space(self, right: Node | str, is_put: bool) -> str:
        """Returns the white space that is missing before a node or a text.

        `is_put` says whether the node is put into the target.
        """
        if not is_put and not self._is_put:
            return ""
        left = self._left
        if isinstance(left, Node):
            behind = _read_behind(self._source, left)
            if isinstance(right, Node):
                return _find_between(left, behind, right, _read_before(self._source, right))
            return _find_beside(left, behind, right, _is_closing)
        if isinstance(right, Node):
            return _find_beside(right, _read_before(self._source, right), left[::-1], _is_opening)
        return ""

    def add(self, item: Node | str, is_put: bool) -> None:
        """Notes a node or a text that was written."""
        if isinstance(item, str) and isinstance(self._left, str):
            item = self._left + item
        self._left = item[-MAX_BESIDE:] if isinstance(item, str) else item
        self._is_put = is_put


def _read_before(source: str, node: Node) -> str:
    """Returns the character before a node in the source."""
    return source[max(node.begin - 1, 0) : node.begin]


def _read_behind(source: str, node: Node) -> str:
    """Returns the character behind a node in the source."""
    return " " if node.has_space_behind else source[node.end : node.end + 1]


def _find_between(left: Node, behind: str, right: Node, before: str) -> str:
    """Returns the white space between two nodes: none if they touch in the source.

    `behind` and `before` are the characters beside them in the source.
    """
    if left.end == right.begin and not left.has_space_behind:
        return ""
    space = behind if behind.isspace() else before
    has_contents = left.content is not None and right.content is not None
    return _as_space(space) if space.isspace() or has_contents else ""


def _find_beside(node: Node, beside: str, text: str, belongs: Callable[[str], bool]) -> str:
    """Returns the white space between a node and a text.

    `beside` is the character beside the node in the source. `text` goes on from the node. `belongs` says whether the
    first character of such a text is a mark that belongs to the word at the node.
    """
    if not text or text[0].isspace() or is_unspaced(text[0]):
        return ""
    if beside.isspace() or (not beside and node.content):
        return "" if belongs(text) else _as_space(beside)
    # Beside a mark, a placeholder touches no word.
    return " " if node.content and not beside.isalnum() and text[0].isalnum() else ""


def _as_space(character: str) -> str:
    """Returns the white space of a source, without line breaks."""
    return character if character in _SPACES else " "


def _is_closing(text: str) -> bool:
    """Whether a text begins with a mark that belongs to what stands before it."""
    if text[0] in _EITHER:
        return not text[1:2].isalnum()
    return text[0] in _CLOSING or unicodedata.category(text[0]) in ("Pe", "Pf")


def _is_opening(text: str) -> bool:
    """Whether a text, read from right to left, begins with a mark that belongs to what stands behind it."""
    if text[0] in _EITHER:
        return not text[1:2] or text[1].isspace()
    return text[0] in _OPENING or unicodedata.category(text[0]) in ("Ps", "Pi")
