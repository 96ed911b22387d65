"""Whether requests come alone or in bursts, and a short wait for the rest of a burst.

A page that is translated is a request for each sentence, all within milliseconds. An engine that starts at the first of
them reads its source alone while the others come in slowly beside it. To read all sources together takes less time than
that, for the first one too. A request that comes alone should not wait at all. Knows clocks; knows no requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

# Seconds without a new request after which a burst has arrived, and the longest wait for a burst.
_QUIET, _LONGEST = 0.001, 0.02
# Seconds within which requests that follow a single one make a burst with it.
_TOGETHER = 0.01
# Waits in a row in which no request arrives, after which bursts are not expected any more.
_MAX_VAIN = 3


class BatchingDelay:
    """What an idle engine knows of how requests arrive. For the engine's thread."""

    def __init__(self) -> None:
        self._expects_burst = False
        self._num_vain = 0  # waits in a row in which no request arrived
        self._alone_at: float | None = None  # when the last request arrived that started alone

    def wait(self, count: Callable[[], int], is_enough: Callable[[], bool]) -> None:
        """Waits, where a burst is expected, until no more requests arrive or enough have arrived.

        `count` returns the number of waiting requests, at least 1.
        """
        if not self._expects_burst:
            return
        end = time.monotonic() + _LONGEST
        before, now = 0, count()
        while before < now and not is_enough() and time.monotonic() < end:
            time.sleep(_QUIET)
            before, now = now, count()
        self._num_vain = 0 if now > 1 else self._num_vain + 1
        self._expects_burst = self._num_vain < _MAX_VAIN

    def record(self, arrival_times: Sequence[float], *, was_idle: bool) -> None:
        """Takes note of requests that start together, and that arrived at these times of `time.monotonic`."""
        if was_idle and len(arrival_times) == 1:
            self._alone_at = arrival_times[0]
            return
        if was_idle or (self._alone_at is not None and arrival_times[0] - self._alone_at < _TOGETHER):
            self._expects_burst, self._num_vain = True, 0
        self._alone_at = None
