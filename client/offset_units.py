"""Texts that are sliced by offsets in code points, in code units of UTF-16, or in bytes of UTF-8."""

from __future__ import annotations

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
