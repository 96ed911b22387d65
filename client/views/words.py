"""Words to display: which tokens a view shows as one, because they are bytes of one character or pieces of one word.

Tokens of bytes have overlapping spans if the bytes belong to one character. This module reads tokens and their spans;
labels and pieces of tokens do not tell which characters they share.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from ..offset_units import Span, Token, UnitText
from ..parameters import OffsetUnit
from .terminal import escape_controls

# Scripts, as names of Unicode characters begin with them, that put no spaces between words.
_SCRIPTS_WITHOUT_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


@dataclass(frozen=True)
class Word:
    """The positions of tokens that a view shows as one word. The view adds their attention."""

    label: str
    positions: tuple[int, ...]
    special: bool


def find_words(tokens: Sequence[Token | Span], boundary: int = 0, unit: OffsetUnit = "code_point") -> list[Word]:
    """Groups tokens into words. Units of the server stay as they are.

    Two neighbours are one word if they share a character. In scripts that put spaces between words, they are also one
    word if their spans touch, with letters on both sides.

    Args:
        tokens: The tokens, in order.
        boundary: The index where another text begins. Its spans count from 0 again.
        unit: What the spans count.
    """
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if index not in (0, boundary) and _is_same_word(tokens[index - 1], token):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [_build_word(tokens, indices, unit) for indices in groups]


def group_by_character(tokens: Sequence[Token | Span], boundary: int = 0) -> list[list[int]]:
    """Groups the indices of tokens, in order. Neighbours that share a character are in one group.

    Args:
        tokens: The tokens, in order.
        boundary: The index where another text begins. Its spans count from 0 again. In a decoder-only model's text,
            it is the index where the prompt ends and the target begins.
    """
    groups: list[list[int]] = []
    for index, token in enumerate(tokens):
        if index not in (0, boundary) and _shares_character(tokens[index - 1], token):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def join_text(tokens: Sequence[Token | Span], unit: OffsetUnit) -> str:
    """Joins the text of neighbouring tokens, each character once. Empty while no token has its characters."""
    text = ""
    end = 0
    for index, token in enumerate(tokens):
        own_text = UnitText(token.text, unit)
        text += own_text.slice(max(0, end - token.begin)) if index else token.text
        # A token of an incomplete character has a span, but no text yet.
        end = max(end, token.begin + len(own_text))
    return text


def _shares_character(previous: Token | Span, token: Token | Span) -> bool:
    return not (previous.special or token.special) and previous.begin <= token.begin < previous.end


def _is_same_word(previous: Token | Span, token: Token | Span) -> bool:
    if isinstance(token, Span):
        return False
    if _shares_character(previous, token):
        return True
    if token.special or previous.special or previous.end != token.begin:
        return False
    return _is_word_character(previous.text[-1:]) and _is_word_character(token.text[:1])


def count_complete(text: str) -> int:
    """Returns how many characters of a text that grows belong to complete words. White space ends a word.

    In scripts without spaces, each character counts as a word.
    """
    for index in range(len(text) - 1, -1, -1):
        if text[index].isspace():
            return len(text[:index].rstrip())
        if _is_unspaced(text[index]):
            return index + 1
    return 0


def _is_unspaced(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words."""
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0] in _SCRIPTS_WITHOUT_SPACES


def _is_word_character(character: str) -> bool:
    """Whether a character is a letter, a mark or a digit of a script with spaces between words."""
    return bool(character) and unicodedata.category(character)[0] in "LMN" and not _is_unspaced(character)


def _build_word(tokens: Sequence[Token | Span], indices: Sequence[int], unit: OffsetUnit) -> Word:
    first = tokens[indices[0]]
    text = join_text([tokens[index] for index in indices], unit).strip() if len(indices) > 1 else ""
    return Word(escape_controls(text or first.label), tuple(indices), first.special)
