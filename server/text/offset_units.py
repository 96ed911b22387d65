"""Offsets in the unit of a client: code points, code units of UTF-16, or bytes of UTF-8.

All offsets in the server count code points. The API converts offsets of requests when it reads them, and offsets of
responses when it writes them.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import Literal

OffsetUnit = Literal["code_point", "utf16", "utf8"]

# The characters of more than one unit.
_WIDE = {"code_point": re.compile(r"(?!)"), "utf16": re.compile(r"[^\0-\uffff]"), "utf8": re.compile(r"[^\0-\x7f]")}


class OffsetMap:
    """A text that may grow, and the unit at which each of its characters begins.

    To add text takes time for the new text alone. To convert an offset takes time that grows as the logarithm of the
    text's length.
    """

    def __init__(self, unit: OffsetUnit, text: str = "") -> None:
        self._unit: OffsetUnit = unit
        self._length = 0
        self._places: list[int] = []  # of characters of more than one unit, in code points
        self._ends: list[int] = []  # of these characters, in units
        self.append(text)

    def append(self, text: str) -> None:
        """Adds text at the end."""
        num_more = self._ends[-1] - self._places[-1] - 1 if self._places else 0  # units than code points
        for match in _WIDE[self._unit].finditer(text):
            num_more += count_units(match.group(), self._unit) - 1
            place = self._length + match.start()
            self._places.append(place)
            self._ends.append(place + 1 + num_more)
        self._length += len(text)

    def to_units(self, offset: int, open_bytes: bytes = b"") -> int:
        """Returns the place in units of an offset in code points.

        An offset behind the text counts characters that are still to come. `open_bytes` are the bytes of these
        characters so far. A character counts as much as the whole character will.
        """
        num_to_come = max(0, offset - self._length)
        offset -= num_to_come
        index = bisect_left(self._places, offset)
        num_more = self._ends[index - 1] - self._places[index - 1] - 1 if index else 0
        return offset + num_more + (_count_open_units(open_bytes, num_to_come, self._unit) if num_to_come else 0)

    def to_code_points(self, offset: int) -> int:
        """Returns an offset in code points. Raises ValueError for an offset inside a character or behind the text."""
        index = bisect_right(self._ends, offset)
        place = offset - (self._ends[index - 1] - self._places[index - 1] - 1 if index else 0)
        if index < len(self._places) and place > self._places[index]:
            raise ValueError("lies inside a character")
        if place > self._length:
            raise ValueError("lies behind the text")
        return place


def count_units(text: str, unit: OffsetUnit) -> int:
    """Returns the length of a text."""
    if unit == "code_point":
        return len(text)
    return len(text.encode()) if unit == "utf8" else len(text.encode("utf-16-le")) // 2


def _count_open_units(open_bytes: bytes, num_characters: int, unit: OffsetUnit) -> int:
    """Returns the length of characters of which the first bytes are known."""
    characters = open_bytes.decode("utf-8", "replace")
    if len(characters) == num_characters == 1:  # the first byte says how long the character will be
        size = 4 if open_bytes[0] >= 0xF0 else 3 if open_bytes[0] >= 0xE0 else 2
        return {"code_point": 1, "utf16": size // 4 + 1, "utf8": size}[unit]
    return count_units("\N{REPLACEMENT CHARACTER}", unit) * num_characters
