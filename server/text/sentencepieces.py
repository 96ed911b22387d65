"""Where SentencePiece's pieces come from, as SentencePiece itself says: of unknown pieces too."""

from __future__ import annotations

import re
from typing import Any

from .offsets import SPACE, Span

# SentencePiece's tokens for single bytes.
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def processor_of(tokenizer: Any, *, as_target: bool) -> Any | None:
    """The SentencePiece processor that a tokenizer in Python uses for its sources or targets; None if it has none."""
    side = "spm_target" if as_target else "spm_source"
    return getattr(tokenizer, side, None) or getattr(tokenizer, "sp_model", None)


def encode(processor: Any, text: str) -> tuple[list[str], list[Span] | None]:
    """The pieces of a text, and their spans in it; None for the spans where pieces are not the normalized text.

    SentencePiece normalizes a text and cuts it. It says from which character each character of the normalized text
    comes; several may come from one, such as of a ligature, and all pieces with one of these get it.
    """
    pieces: list[str] = processor.encode(text, out_type=str)
    normalized, origins = processor.normalize(text, with_offsets=True)
    ends = [*origins[1:]]  # for each character: where what it comes from ends
    for place in range(len(normalized) - 2, -1, -1):
        if origins[place + 1] == origins[place]:
            ends[place] = ends[place + 1]
    spans: list[Span] = []
    at = 0
    waiting = 0  # bytes of the character at `at` that have had their pieces
    for piece in pieces:
        if normalized.startswith(piece, at) and not waiting:
            spans.append(_span(normalized, origins, ends, at, at + len(piece)))
            at += len(piece)
        elif BYTE.fullmatch(piece) and at < len(normalized):
            spans.append((origins[at], ends[at]))
            waiting += 1
            if waiting == len(normalized[at].encode()):
                at, waiting = at + 1, 0
        else:
            return pieces, None
    return pieces, spans if at == len(normalized) else None


def _span(normalized: str, origins: list[int], ends: list[int], begin: int, end: int) -> Span:
    """Where characters of the normalized text come from, but for spaces around them."""
    first, last = begin, end
    while first < last and normalized[first] == SPACE:
        first += 1
    while first < last and normalized[last - 1] == SPACE:
        last -= 1
    if first == last:  # a space alone: what lies between its neighbours, nothing for one put before the text
        return origins[begin], origins[end]
    return origins[first], ends[last - 1]
