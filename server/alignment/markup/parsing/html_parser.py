"""HTML as pieces.

The parser is turbohtml: a tokenizer by the HTML standard, in C, which gives the place of each token, the source of each
tag byte for byte, and each character reference as a token of its own. lxml, selectolax and html5lib give a tree without
the places of the end tags, so quotes, references and white space in tags are lost when such a tree is written again.
`html.parser` of Python takes quadratic time for some broken texts, such as "<a " many times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ....errors import unimplemented
from .html_names import EMPTY_ELEMENTS
from .pieces import Piece, check_count, locate, malformed

try:
    import turbohtml as _imported
except ImportError:  # the library needs Python 3.11
    _imported = None

_turbohtml: Any = _imported

# The tokenizer leaves this out without a token.
_EMPTY_END_TAG = "</>"
# The tokenizer gives a reference to an entity that HTML does not know as a part of a text.
_ENTITY = re.compile(r"(&[A-Za-z][A-Za-z0-9]*;)")


def parse_html(text: str, is_strict: bool) -> list[Piece]:
    """Cuts HTML into pieces.

    Raises RequestError if `is_strict` and the tokenizer leaves out a part of the text, such as a tag without an end.
    """
    if _turbohtml is None:
        raise unimplemented("markup.format", "HTML needs a server on Python 3.11 or later")
    tokens = list(_turbohtml.tokenize(text, resolve_references=False, capture_source=True))
    kinds = _turbohtml.TokenType
    line_begins = list(_find_lines(text))
    begins = [line_begins[token.line - 1] + token.col for token in tokens]
    pieces: list[Piece] = [_keep(text, 0, begins[0] if begins else len(text), is_strict)]
    num_tags = 0
    for token, begin, end in zip(tokens, begins, [*begins[1:], len(text)], strict=False):
        if token.type == kinds.TEXT:
            pieces += _cut_text(text, begin, end, token.data, is_strict)
            continue
        is_reference = token.type == kinds.CHARACTER_REFERENCE
        num_tags += not is_reference
        check_count(num_tags)
        raw_end = _match(text, begin, end, token.source)
        raw = text[begin:raw_end]
        if is_reference:
            pieces.append(Piece("text", raw, token.data, is_reference=True))
        elif token.type == kinds.START_TAG:
            is_empty = token.tag in EMPTY_ELEMENTS
            attributes = dict(reversed(token.attrs)) if token.attrs else {}
            pieces.append(Piece("empty" if is_empty else "start", raw, "", token.tag, attributes, is_element=True))
        elif token.type == kinds.END_TAG:
            pieces.append(Piece("end", raw, "", token.tag, is_element=True))
        else:
            pieces.append(Piece("empty", raw))
        pieces.append(_keep(text, raw_end, end, is_strict))
    return [piece for piece in pieces if piece.raw]


def _find_lines(text: str) -> Iterator[int]:
    """Yields where the lines of a text begin. A line ends with LF, CR, or CR LF."""
    yield 0
    begin = 0
    for line in text.replace("\r\n", "\n\n").replace("\r", "\n").split("\n")[:-1]:
        begin += len(line) + 1
        if text[begin - 1] == "\r" and text[begin : begin + 1] == "\n":
            continue
        yield begin


def _keep(text: str, begin: int, end: int, is_strict: bool) -> Piece:
    """Returns what the tokenizer left out as a piece."""
    if is_strict and begin < end:
        raise malformed("a tag that does not end, or has no name,", *locate(text, begin))
    return Piece("empty", text[begin:end])


def _match(text: str, begin: int, end: int, normalized: str) -> int:
    """Returns where a normalized part of a text ends: the tokenizer reads CR and CR LF as LF."""
    if text.startswith(normalized, begin):
        return begin + len(normalized)
    for character in normalized:
        if begin == end:
            break
        begin += 2 if character == "\n" and text.startswith("\r\n", begin) else 1
    return begin


def _cut_text(text: str, begin: int, end: int, data: str, is_strict: bool) -> Iterator[Piece]:
    """Yields a text, and between its parts what the tokenizer left out."""
    done = 0  # characters of `data`
    while done < len(data):
        gap = text.find(_EMPTY_END_TAG, begin, end)
        part_end = _match(text, begin, end, data[done:])
        if gap >= 0 and gap < part_end:
            part = text[begin:gap].replace("\r\n", "\n").replace("\r", "\n")
            if not data.startswith(part + _EMPTY_END_TAG, done):
                yield from _cut_entities(text[begin:gap], part)
                yield _keep(text, gap, gap + len(_EMPTY_END_TAG), is_strict)
                begin = gap + len(_EMPTY_END_TAG)
                done += len(part)
                continue
        yield from _cut_entities(text[begin:part_end], data[done:])
        begin, done = part_end, len(data)
    yield _keep(text, begin, end, is_strict)


def _cut_entities(raw: str, text: str) -> Iterator[Piece]:
    """Yields a text, and the references to entities in the text as pieces of their own."""
    if "&" not in raw:
        yield Piece("text", raw, text)
        return
    parts = zip(_ENTITY.split(raw), _ENTITY.split(text), strict=True)
    for number, (raw_part, part) in enumerate(parts):
        yield Piece("empty" if number % 2 else "text", raw_part, part, is_reference=number % 2 == 1)
