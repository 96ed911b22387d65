"""Tokens and units with their places in a text, and texts sliced by offsets in any unit of the contract."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from .parameters import OffsetUnit

# For each unit but code points: the encoding, and the bytes of a unit.
_ENCODINGS: dict[OffsetUnit, tuple[str, int]] = {"utf16": ("utf-16-le", 2), "utf8": ("utf-8", 1)}


class UnitText:
    """A text whose characters have places in a unit."""

    def __init__(self, text: str, unit: OffsetUnit) -> None:
        self._text = text
        self._encoding = _ENCODINGS.get(unit)
        self._bytes = b"" if self._encoding is None else text.encode(self._encoding[0])

    def __len__(self) -> int:
        """The length of the text in units."""
        return len(self._text) if self._encoding is None else len(self._bytes) // self._encoding[1]

    def slice(self, begin: int, end: int | None = None) -> str:
        """Returns the characters from one offset to another. Of half a character, U+FFFD is left."""
        if self._encoding is None:
            return self._text[begin:end]
        encoding, size = self._encoding
        return self._bytes[begin * size : None if end is None else end * size].decode(encoding, "replace")


@dataclass(frozen=True)
class Token:
    """One token of a source or a target.

    Attributes:
        id: The token's id in the vocabulary.
        piece: The token's form in the vocabulary, such as "▁Haus".
        begin: Where the token begins in the exact text, in characters, or in the unit that the request asked for.
        end: Where the token ends in the exact text: the index behind its last character.
        special: Whether the token is a special token. A special token covers no characters.
        text: The text from `begin` to `end`. Tokens that hold only some bytes of a character all have the
            span of the character; in a step, the `text` of all of these tokens but the last is empty.
    """

    id: int
    piece: str
    begin: int
    end: int
    special: bool
    text: str

    @property
    def label(self) -> str:
        """What a view shows for the token: its text, or its piece if the token stands for no characters.

        White space has a visible sign. A token that holds only some bytes of a character has an ellipsis until the
        character is complete: the piece of such a token can look like another character.
        """
        if self.text:
            return _show_text(self.text)
        return self.piece if self.special or self.begin == self.end else "…"


def _show_text(text: str) -> str:
    """Returns a text without the spaces around it; of a text of spaces, a visible sign for each."""
    return text.strip() or "".join("␣" if unicodedata.category(character) == "Zs" else character for character in text)


@dataclass(frozen=True)
class Span:
    """A part of a text that a unit covers: `text` is the text from `begin` to `end`.

    A special token covers nothing; `piece` is its form in the vocabulary.
    """

    begin: int
    end: int
    text: str
    piece: str = ""

    @property
    def special(self) -> bool:
        """Whether the unit covers nothing, as a special token does."""
        return self.begin == self.end

    @property
    def label(self) -> str:
        """What a view shows for the unit."""
        return _show_text(self.text) if self.text else self.piece or "∅"
