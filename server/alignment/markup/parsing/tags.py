"""Which tags belong together, which contents are kept as they are, and which tags end a segment."""

from __future__ import annotations

from collections import Counter

from ..options import MarkupFormat
from .html_names import (
    BLOCK_ELEMENTS,
    FORMATTING_ELEMENTS,
    HIDDEN_ELEMENTS,
    INLINE_ELEMENTS,
    OPTIONAL_ENDS,
    PREFORMATTED_ELEMENTS,
    VERBATIM_ELEMENTS,
)
from .pieces import Piece, locate, malformed

# Elements of XLIFF 1.2 whose contents are code of another format.
_XLIFF_CODES = frozenset(["ph", "bpt", "ept", "it"])
# Attributes that make an element unique, so that the element is never repeated.
_UNIQUE_ATTRIBUTES = ("id", "xml:id", "name", "rid", "xid")


def match_tags(pieces: list[Piece]) -> None:
    """Finds the end tag of each start tag, in time linear in the number of pieces.

    An end tag belongs to the last open element of its name. Elements that are open inside that element have no end tag.
    """
    open_tags: list[int] = []
    num_open: Counter[str] = Counter()
    for number, piece in enumerate(pieces):
        piece.partner = -1
        if piece.kind == "start":
            open_tags.append(number)
            num_open[piece.name] += 1
        elif piece.kind == "end" and num_open[piece.name]:
            while True:
                begin = open_tags.pop()
                num_open[pieces[begin].name] -= 1
                if pieces[begin].name == piece.name:
                    break
            pieces[begin].partner, piece.partner = number, begin


def check_matches(pieces: list[Piece], text: str) -> None:
    """Raises RequestError for HTML whose tags do not belong together. The end tags of some elements may be left out."""
    offset = 0
    for piece in pieces:
        is_tag = piece.kind in ("start", "end") and piece.partner < 0
        if is_tag and not (piece.kind == "start" and piece.name in OPTIONAL_ENDS):
            what = "an element without an end tag" if piece.kind == "start" else "an end tag without an element"
            raise malformed(what, *locate(text, offset))
        offset += len(piece.raw)


def is_verbatim(piece: Piece, markup_format: MarkupFormat) -> bool:
    """Whether the contents of an element are kept as they are."""
    attributes = piece.attributes
    if attributes.get("translate") == "no" or attributes.get("its:translate") == "no":
        return True
    if "notranslate" in attributes.get("class", "").split():
        return True
    if markup_format == "xliff":
        return piece.name in _XLIFF_CODES or (piece.name == "mrk" and attributes.get("mtype") == "protected")
    return piece.name in VERBATIM_ELEMENTS


def is_hidden(piece: Piece, markup_format: MarkupFormat) -> bool:
    """Whether the contents of a verbatim element are no part of a sentence."""
    return piece.name in (_XLIFF_CODES if markup_format == "xliff" else HIDDEN_ELEMENTS)


def pair_name(piece: Piece) -> tuple[str, str] | None:
    """Returns what an element of XLIFF is one end of: "start" or "end", and the name of the pair."""
    if piece.name in ("bx", "bpt", "ex", "ept"):
        kind = "start" if piece.name in ("bx", "bpt") else "end"
        family = "x" if piece.name in ("bx", "ex") else "pt"
        return kind, f"{family} {piece.attributes.get('rid') or piece.attributes.get('id', '')}"
    return None


def is_repeatable(piece: Piece, markup_format: MarkupFormat) -> bool:
    """Whether an element may be repeated where its words come apart."""
    if any(name in piece.attributes for name in _UNIQUE_ATTRIBUTES) or markup_format == "xliff":
        return False
    return markup_format == "xml" or piece.name in FORMATTING_ELEMENTS


def is_preformatted(piece: Piece) -> bool:
    """Whether white space in an element counts as it stands."""
    return piece.name in PREFORMATTED_ELEMENTS or piece.attributes.get("xml:space") == "preserve"


def find_blocks(pieces: list[Piece], markup_format: MarkupFormat) -> list[bool]:
    """Says for each piece whether the piece ends a segment.

    XML has elements of any name. An element of an unknown name is part of a sentence if text stands beside it, and ends
    a segment otherwise.
    """
    if markup_format == "html":
        return [piece.name in BLOCK_ELEMENTS for piece in pieces]
    if markup_format != "xml":
        return [False] * len(pieces)
    parents: list[int] = []
    with_text: set[int] = set()
    open_tags = [-1]
    for number, piece in enumerate(pieces):
        if piece.kind == "end" and 0 <= piece.partner == open_tags[-1]:
            open_tags.pop()
        parents.append(open_tags[-1])
        is_text = piece.text.strip() if piece.kind == "text" else piece.is_reference
        if is_text or piece.name in INLINE_ELEMENTS:
            with_text.add(open_tags[-1])
        if piece.kind == "start" and piece.partner >= 0:
            open_tags.append(number)
    blocks: list[bool] = []
    inline: set[int] = set()
    for number, piece in enumerate(pieces):
        if piece.kind == "end":
            blocks.append(blocks[piece.partner] if piece.partner >= 0 else False)
            continue
        is_inline = not piece.is_element or piece.name in INLINE_ELEMENTS
        if not is_inline and piece.name not in BLOCK_ELEMENTS:
            is_inline = parents[number] in with_text or parents[number] in inline
        blocks.append(not is_inline)
        if is_inline:
            inline.add(number)
    return blocks
