"""The pieces of a text, and the characters that each piece comes from, as SentencePiece itself gives them.

SentencePiece gives the characters of unknown pieces too.
"""

from __future__ import annotations

import re
from typing import Any

from .offsets import SPACE, Span

# SentencePiece's pieces for single bytes.
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def find_processor(tokenizer: Any, *, as_target: bool) -> Any | None:
    """Returns the SentencePiece processor of a slow tokenizer, for sources or for targets; None if it has none."""
    side = "spm_target" if as_target else "spm_source"
    return getattr(tokenizer, side, None) or getattr(tokenizer, "sp_model", None)


def encode(processor: Any, text: str) -> tuple[list[str], list[Span] | None]:
    """Returns the pieces of a text and their spans; None for the spans if the pieces are not the normalized text.

    SentencePiece normalizes a text and cuts it. It says from which character each character of the normalized text
    comes. Several may come from one character, such as from a ligature: all pieces with one of these get its span.
    """
    pieces: list[str] = processor.encode(text, out_type=str)
    normalized, origins = processor.normalize(text, with_offsets=True)
    ends = [*origins[1:]]  # for each normalized character: the end of the characters that it comes from
    if len(set(origins)) < len(origins):
        for place in range(len(normalized) - 2, -1, -1):
            if origins[place + 1] == origins[place]:
                ends[place] = ends[place + 1]
    spans: list[Span] = []
    place = 0
    num_bytes = 0  # bytes of the character at `place` that have had their pieces
    for piece in pieces:
        if normalized.startswith(piece, place) and not num_bytes:
            spans.append(_find_span(normalized, origins, ends, place, place + len(piece)))
            place += len(piece)
        elif BYTE.fullmatch(piece) and place < len(normalized):
            spans.append((origins[place], ends[place]))
            num_bytes += 1
            if num_bytes == len(normalized[place].encode()):
                place, num_bytes = place + 1, 0
        else:
            return pieces, None
    return pieces, spans if place == len(normalized) else None


def _find_span(normalized: str, origins: list[int], ends: list[int], begin: int, end: int) -> Span:
    """Returns the span that characters of the normalized text come from, without spaces around them."""
    first, last = begin, end
    while first < last and normalized[first] == SPACE:
        first += 1
    while first < last and normalized[last - 1] == SPACE:
        last -= 1
    if first == last:  # only a space: what lies between its neighbours, nothing for a space put before the text
        return origins[begin], origins[end]
    return origins[first], ends[last - 1]
