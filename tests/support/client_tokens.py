"""Tokens of texts, for tests of what the client shows."""

from __future__ import annotations

from sidelight.client import Token


def tokens(*texts: str) -> tuple[Token, ...]:
    """Makes the tokens of a text. A leading space begins a new word."""
    result, begin = [], 0
    for number, text in enumerate(texts):
        begin += len(text) - len(text.lstrip())
        word = text.strip()
        special = word.startswith("</")
        end = begin if special else begin + len(word)
        result.append(Token(number, word, begin, end, special, "" if special else word))
        begin = end
    return tuple(result)


def byte_tokens(*parts: tuple[int, int, str]) -> tuple[Token, ...]:
    """Makes tokens of bytes from (begin, end, text). Their pieces are not readable."""
    return tuple(Token(n, f"<0x{0xE0 + n:02X}>", begin, end, False, text) for n, (begin, end, text) in enumerate(parts))


SHORT = tokens("My", " grand", "mother", " is", " old", ".", "</s>")
