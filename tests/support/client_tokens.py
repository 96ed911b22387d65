"""Tokens of texts, for tests of what the client shows."""

from __future__ import annotations

from sidelight.client.results import Token


def tokens(*texts: str) -> tuple[Token, ...]:
    """Tokens of a text; a leading space parts words."""
    made, place = [], 0
    for number, text in enumerate(texts):
        place += len(text) - len(text.lstrip())
        word = text.strip()
        special = word.startswith("</")
        end = place if special else place + len(word)
        made.append(Token(number, word, place, end, special, "" if special else word))
        place = end
    return tuple(made)


def spanned(*parts: tuple[int, int, str]) -> tuple[Token, ...]:
    """Tokens that are bytes: their pieces say nothing that people could read."""
    return tuple(Token(n, f"<0x{0xE0 + n:02X}>", begin, end, False, text) for n, (begin, end, text) in enumerate(parts))


SHORT = tokens("My", " grand", "mother", " is", " old", ".", "</s>")
