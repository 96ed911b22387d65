"""Where tokens stand in a text: character offsets, for any tokenizer.

Offsets count Unicode code points of the exact text, half-open. White space around a word belongs to no token.
Knows strings only: no tokenizer, no model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

Span = tuple[int, int]

# Marks of subword vocabularies that stand for a space or for the end of a word, not for characters of the text.
_SPACE_MARKS = ("▁", "Ġ")
_WORD_MARKS = ("</w>", "@@", "##")

# How far ahead of the cursor a piece may be found: what lies between was dropped by the tokenizer's normaliser.
_REACH = 32


def trim(text: str, span: Span) -> Span:
    """`span` without the white space at its ends, unless there is nothing else in it."""
    begin, end = span
    inner = text[begin:end].strip()
    if not inner:
        return span
    begin += text[begin:end].index(inner)
    return begin, begin + len(inner)


def align(text: str, pieces: Sequence[str | None]) -> list[Span]:
    """The span of each vocabulary piece in the text it was made from, for tokenizers that do not tell.

    `None` stands for a piece whose characters are unknown (an unknown token): it gets what its neighbours leave over.
    Pieces are matched in order and modulo case and compatibility decomposition (NFKD), since tokenizers normalise: a
    ligature cut in two gives both tokens the ligature. A piece that matches nothing is treated like an unknown one.
    """
    plain, origin = _normalized(text)
    spans: list[Span | None] = []
    cursor = 0
    for piece in pieces:
        wanted = None if piece is None else _surface(piece)
        if wanted == "":  # a mark alone: it covers nothing, behind the word before it
            here = origin[cursor - 1] + 1 if cursor else 0
            spans.append((here, here))
            continue
        at = -1 if wanted is None else plain.find(wanted, cursor, cursor + _REACH + len(wanted))
        if wanted is None or at < 0:
            spans.append(None)
            continue
        cursor = at + len(wanted)
        spans.append((origin[at], origin[cursor - 1] + 1))
    return _fill(text, spans)


def _normalized(text: str) -> tuple[str, list[int]]:
    """The text without white space, decomposed and case-folded, and each character's place in the original."""
    characters: list[str] = []
    origin: list[int] = []
    for place, character in enumerate(text):
        for part in _fold(character):
            characters.append(part)
            origin.append(place)
    return "".join(characters), origin


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(folded.split())


def _surface(piece: str) -> str:
    for mark in _SPACE_MARKS:
        piece = piece.replace(mark, " ")
    for mark in _WORD_MARKS:
        piece = piece.removeprefix(mark).removesuffix(mark)
    return _fold(piece)


def _fill(text: str, spans: Sequence[Span | None]) -> list[Span]:
    """Gives the pieces without a span what lies between their neighbours; several in a row share it."""
    begins: list[int] = []  # of the next piece with a span
    begin = len(text)
    for span in reversed(spans):
        begin = begin if span is None else span[0]
        begins.append(begin)
    filled: list[Span] = []
    end = 0  # of the last piece with a span
    for span, begin in zip(spans, reversed(begins), strict=True):
        end = end if span is None else span[1]
        filled.append(trim(text, (end, max(end, begin))) if span is None else span)
    return filled
