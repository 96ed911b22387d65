"""What the engine has made and a client has not yet taken: the one place where threads meet.

The engine's thread puts, an asyncio task takes. Bounded by bytes, so that a slow reader costs no more memory than that:
the engine leaves its job alone until there is room again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import RequestError
from ..request import EncoderSelf, Output, Step

# Held for one reader at most, what is being sent to it included, but for the event that passes the limit.
CAPACITY = 256 * 1024

# What an event takes beside its arrays: its texts, and Python's objects.
_EVENT_BYTES = 512


def size_of(event: Output) -> int:
    """About how many bytes an event holds: its arrays', and something for the rest."""
    arrays = [event.attention] if isinstance(event, EncoderSelf) else []
    if isinstance(event, Step):
        arrays = [array for array in (event.cross, event.decoder_self) if array is not None]
    return _EVENT_BYTES + sum(array.nbytes for array in arrays)


def ring(outboxes: Iterable[OutputQueue]) -> None:
    """Tells the tasks that take from some outboxes that there is something, by one call to each event loop.

    With a call for each, the loop's thread would run at the first, and the engine would wait for Python's lock at every
    other: on 2 cores, a millisecond between two steps of 8 requests.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[OutputQueue]] = {}
    for outbox in outboxes:
        by_loop.setdefault(outbox._loop, []).append(outbox)
    for loop, some in by_loop.items():
        _ring(loop, some)


def _ring(loop: asyncio.AbstractEventLoop, outboxes: list[OutputQueue]) -> None:
    def set_ready() -> None:
        for outbox in outboxes:
            outbox._ready.set()

    ended = [outbox for outbox in outboxes if outbox._ended]  # before the call, which tells of these
    try:
        loop.call_soon_threadsafe(set_ready)
    except RuntimeError:  # the loop is closed: the server has stopped, nobody waits
        for outbox in outboxes:
            outbox._abandoned = True
    for outbox in ended:
        outbox._has_told_end = True


class OutputQueue:
    """A queue of events from the engine's thread to one asyncio task."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        """Made in the event loop that takes. `on_room` is called when there is room again, or nobody takes any more."""
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._on_room = on_room
        self._lock = threading.Lock()
        self._events: deque[tuple[Output, int]] = deque()  # each with its size
        self._held = 0
        self._full_since: float | None = None
        self._taken = 0  # of what is held: taken, and not yet sent
        self._error: RequestError | None = None
        self._ended = False
        self._has_told_end = False
        self._abandoned = False

    @property
    def full(self) -> bool:
        """Whether the engine should wait."""
        return self.full_since is not None

    @property
    def full_since(self) -> float | None:
        """Since when the engine should wait, by `time.monotonic`; None where it need not."""
        with self._lock:
            return self._full_since

    @property
    def abandoned(self) -> bool:
        """Whether nobody will take any more."""
        return self._abandoned

    @property
    def error(self) -> RequestError | None:
        """Why the job has ended before its time, whether the reader has come so far or not."""
        return self._error

    def put(self, event: Output, *, ring: bool = True) -> None:
        """Adds an event. For the engine's thread. `ring=False` leaves it to `ring` to tell the task."""
        size = size_of(event)
        with self._lock:
            self._events.append((event, size))
            self._held += size
            if self._full_since is None and self._held >= CAPACITY:
                self._full_since = time.monotonic()
        if ring:
            self._wake()

    def end(self, error: RequestError | None = None, *, ring: bool = True) -> None:
        """Says that nothing more will come, and why. For any thread. `ring` as in `put`.

        The first call says why; a later one only tells the task, should the first have failed to.
        """
        with self._lock:
            if not self._ended:
                self._ended, self._error = True, error
        if ring and not self._has_told_end:
            self._wake()

    async def take(self, most: int) -> list[Output]:
        """The next events in order, of `most` bytes together or a single one; waits for something if nothing waits.

        What was taken before counts as sent. Empty at the end. Raises RequestError.
        """
        self._note_sent()
        while True:
            await self._ready.wait()
            with self._lock:
                events: list[Output] = []
                while self._events and (not events or self._taken + self._events[0][1] <= most):
                    event, size = self._events.popleft()
                    events.append(event)
                    self._taken += size
                if not self._events and not self._ended:
                    self._ready.clear()  # at the end it stays set, for a later call
                if not events and self._ended:
                    if self._error is not None:
                        raise self._error
                    return []
            if events:
                return events

    def _note_sent(self) -> None:
        with self._lock:
            self._held -= self._taken
            self._taken = 0
            has_room = self._full_since is not None and self._held < CAPACITY
            if has_room:
                self._full_since = None
        if has_room:
            self._on_room()

    def abandon(self) -> None:
        """Says that the task takes no more events, and drops the waiting ones. For the taking task."""
        self._abandoned = True
        with self._lock:
            self._events.clear()
            self._held = self._taken = 0
            self._full_since = None
        self._on_room()

    def _wake(self) -> None:
        ring([self])
