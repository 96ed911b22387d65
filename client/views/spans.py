"""Which tokens stand for the same characters: byte tokens, whose spans overlap where they make one character.

Knows tokens and their spans; labels and pieces say nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..results import Token


def overlaps(before: Token, token: Token) -> bool:
    """Whether a token and the one before it share a character."""
    return not (before.special or token.special) and before.begin <= token.begin < before.end


def group_by_character(tokens: Sequence[Token], boundary: int = 0) -> list[list[int]]:
    """The tokens' indices, in order, with those together that share a character.

    At `boundary` another text begins, whose spans count anew: a decoder-only model's prompt ends, its target begins.
    """
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if index not in (0, boundary) and overlaps(tokens[index - 1], token):
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
