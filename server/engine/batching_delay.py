"""Whether requests come alone or many at once, and a moment's wait for the rest of those that come together.

A page that is translated is a request for each sentence, all within milliseconds. Whoever starts at the first of them
reads its source alone while the others come in slowly beside it; to read all sources together takes less time than
that, for the first one too. One that comes alone should not wait at all. Knows clocks; knows nothing of requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# Seconds without a newcomer after which a burst has come in, and the longest wait for one.
_QUIET, _LONGEST = 0.001, 0.02
# Seconds within which those that come after one that was alone make a burst.
_TOGETHER = 0.01
# How many waits in a row may be for nothing before there are no more.
_VAIN = 3


class BatchingDelay:
    """What an idle engine knows of how requests come. For one thread."""

    def __init__(self) -> None:
        self._are_expected = False
        self._vain = 0  # waits in a row that nobody came in
        self._alone: float | None = None  # when the last one came that was begun with alone

    def gather(self, count: Callable[[], int], enough: Callable[[], bool]) -> None:
        """Waits, where bursts are expected, until nobody comes any more, or those who have come are `enough`.

        `count` says how many they are, at least one.
        """
        if not self._are_expected:
            return
        end = time.monotonic() + _LONGEST
        before, now = 0, count()
        while before < now and not enough() and time.monotonic() < end:
            time.sleep(_QUIET)
            before, now = now, count()
        self._vain = 0 if now > 1 else self._vain + 1
        self._are_expected = self._vain < _VAIN

    def begun(self, arrived: Sequence[float], *, was_idle: bool) -> None:
        """Takes note of those that are begun with together, who came at these times of `time.monotonic`."""
        if was_idle and len(arrived) == 1:
            self._alone = arrived[0]
            return
        if was_idle or (self._alone is not None and arrived[0] - self._alone < _TOGETHER):
            self._are_expected, self._vain = True, 0
        self._alone = None
