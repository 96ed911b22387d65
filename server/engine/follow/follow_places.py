"""The follow streams of a model that are open, in all processes of the server: at most so many.

Where as many are open as may be, the stream whose client has sent nothing for longest gives its place.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from ...errors import too_many_streams

# A stream keeps its place for so many seconds after the last message of its client.
_MIN_IDLE_SECONDS = 10.0


class StreamHolder(Protocol):
    """The open follow streams of a model in one process, each with a number of this process."""

    async def find_idlest(self) -> tuple[float, int] | None:
        """Finds the stream whose client has sent nothing for longest.

        Returns when the client's last message came, of `time.monotonic`, and the number; None where there is no stream.
        """
        ...

    def end_idle(self, number: int) -> None:
        """Ends a stream, which has given its place: from now on, `find_idlest` does not find the stream."""
        ...


class FollowPlaces:
    """The places of the follow streams of one model. For one event loop."""

    def __init__(self, max_streams: int) -> None:
        """`max_streams` is the most open streams."""
        self._max_streams = max_streams
        self._open: set[tuple[StreamHolder, int]] = set()

    async def open(self, holder: StreamHolder, number: int) -> None:
        """Gives a stream a place. Raises RequestError where all are taken by streams whose clients send something."""
        while len(self._open) >= self._max_streams:
            holders = list({each for each, _ in self._open})
            idlest = await asyncio.gather(*(each.find_idlest() for each in holders))
            found = [(*each, other) for each, other in zip(idlest, holders, strict=True) if each is not None]
            last_time, idle_number, other = min(found, key=lambda each: each[0], default=(time.monotonic(), 0, holder))
            if time.monotonic() - last_time < _MIN_IDLE_SECONDS:
                if len(self._open) < self._max_streams:  # one has ended meanwhile
                    break
                raise too_many_streams(len(self._open))
            if (other, idle_number) in self._open:  # it may have ended meanwhile
                self._open.remove((other, idle_number))
                other.end_idle(idle_number)
        self._open.add((holder, number))

    def close(self, holder: StreamHolder, number: int) -> None:
        """Takes a stream's place back, where the stream still has one."""
        self._open.discard((holder, number))

    def close_all(self, holder: StreamHolder) -> None:
        """Takes the places of all streams of a process back: the process has gone."""
        self._open = {(other, number) for other, number in self._open if other is not holder}
