"""Pieces: a text with markup, cut into tags, comments and texts. All pieces together are the text again.

The parsers of all formats make pieces. Whatever a parser does not understand is a piece too, so nothing is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ....errors import RequestError, invalid
from ..options import MAX_TAGS

PieceKind = Literal["text", "start", "end", "empty"]
"""A text, a start tag, an end tag, or what has no contents: an empty element, a comment, a declaration, an entity."""


@dataclass(slots=True)
class Piece:
    """A piece of a text with markup.

    Attributes:
        kind: What the piece is.
        raw: The piece as it stands in the source.
        text: Of a text: the text that it means, with character references resolved. Of an entity: the reference.
        name: Of a tag: the name of the element.
        attributes: Of a start tag and of an empty element.
        is_reference: Whether the piece is a reference: a text to a character, an empty piece to an entity whose text
            is not known.
        is_element: Whether the piece is a tag or an empty element, as distinct from a comment or a declaration.
        partner: Of a start tag: the number of its end tag, and the other way round. -1: there is none.
    """

    kind: PieceKind
    raw: str
    text: str = ""
    name: str = ""
    attributes: dict[str, str] = field(default_factory=dict[str, str])
    is_reference: bool = False
    is_element: bool = False
    partner: int = -1


def malformed(message: str, line: int, column: int) -> RequestError:
    """Returns the error for markup that is not well-formed. Lines and columns count from 1."""
    return invalid("source.text", "MALFORMED_MARKUP", f"{message} at line {line}, column {column}")


def check_count(num_tags: int) -> None:
    """Refuses a text with too many tags."""
    if num_tags > MAX_TAGS:
        message = f"has more than {MAX_TAGS:,} tags, comments and placeholders"
        raise invalid("source.text", "TOO_MANY_TAGS", message)


def locate(text: str, offset: int) -> tuple[int, int]:
    """Returns the line and the column of an offset, both from 1."""
    begin = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - begin + 1
