"""WhiteSpace: how far the white space of a text reaches from an offset."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right

_SPACES = re.compile(r"\s+")


class WhiteSpace:
    """The white space of one text, found once: many nodes may stand in one long run of spaces."""

    def __init__(self, text: str) -> None:
        runs = [match.span() for match in _SPACES.finditer(text)]
        self._begins = [begin for begin, _ in runs]
        self._ends = [end for _, end in runs]

    def begin_before(self, offset: int) -> int:
        """Returns the begin of the white space that reaches up to an offset; the offset itself where there is none."""
        run = bisect_left(self._begins, offset) - 1
        return self._begins[run] if run >= 0 and self._ends[run] >= offset else offset

    def end_behind(self, offset: int) -> int:
        """Returns the end of the white space from an offset on; the offset itself where there is none."""
        run = bisect_right(self._begins, offset) - 1
        return self._ends[run] if run >= 0 and self._ends[run] > offset else offset
