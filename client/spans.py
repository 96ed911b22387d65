"""Which tokens stand for the same characters: byte tokens, whose spans overlap where they make one character.

Knows tokens and their spans; labels and pieces say nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from .results import Token


def overlaps(before: Token, token: Token) -> bool:
    """Whether a token and the one before it share a character."""
    return not (before.special or token.special) and before.begin <= token.begin < before.end


def group_by_character(tokens: Sequence[Token]) -> list[list[int]]:
    """The tokens' indices, in order, with those together that share a character."""
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if index and overlaps(tokens[index - 1], token):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def joined_text(tokens: Sequence[Token]) -> str:
    """The text of neighbouring tokens, each character once. Empty while none of them has its characters."""
    text = ""
    end = 0
    for index, token in enumerate(tokens):
        text += token.text[max(0, end - token.begin) :] if index else token.text
        # A token whose character is incomplete has its span, and no text yet.
        end = max(end, token.begin + len(token.text))
    return text
