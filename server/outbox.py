"""What the engine has made and a client has not yet taken: the one place where threads meet.

The engine's thread puts, an asyncio task takes. Bounded by bytes, so that a slow reader costs no more memory than that:
the engine leaves its job alone until there is room again.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable

from .errors import RequestError
from .jobs import EncoderSelf, Event, Step

# Held for one reader at most, but for the event that passes the limit.
CAPACITY = 256 * 1024


def size_of(event: Event) -> int:
    """About how many bytes an event holds: its arrays', and something for the rest."""
    arrays = [event.attention] if isinstance(event, EncoderSelf) else []
    if isinstance(event, Step):
        arrays = [array for array in (event.cross, event.decoder_self) if array is not None]
    return 128 + sum(array.nbytes for array in arrays)


def ring(outboxes: Iterable[Outbox]) -> None:
    """Tells the tasks that take from some outboxes that there is something, by one call to each event loop.

    With a call for each, the loop's thread would run at the first, and the engine would wait for Python's lock at every
    other: on 2 cores, a millisecond between two steps of 8 requests.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Outbox]] = {}
    for outbox in outboxes:
        by_loop.setdefault(outbox._loop, []).append(outbox)
    for loop, some in by_loop.items():
        _ring(loop, some)


def _ring(loop: asyncio.AbstractEventLoop, outboxes: list[Outbox]) -> None:
    def set_ready() -> None:
        for outbox in outboxes:
            outbox._ready.set()

    try:
        loop.call_soon_threadsafe(set_ready)
    except RuntimeError:  # the loop is closed: the server has stopped, nobody waits
        for outbox in outboxes:
            outbox._abandoned = True


class Outbox:
    """A queue of events from the engine's thread to one asyncio task."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        """Made in the event loop that takes. `on_room` is called when there is room again, or nobody takes any more."""
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._on_room = on_room
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._held = 0
        self._error: RequestError | None = None
        self._ended = False
        self._abandoned = False

    @property
    def full(self) -> bool:
        """Whether the engine should wait."""
        with self._lock:
            return self._held >= CAPACITY

    @property
    def abandoned(self) -> bool:
        """Whether nobody will take any more."""
        return self._abandoned

    def put(self, event: Event, *, ring: bool = True) -> None:
        """Adds an event. For the engine's thread. `ring=False` leaves it to `ring` to tell the task."""
        with self._lock:
            self._events.append(event)
            self._held += size_of(event)
        if ring:
            self._wake()

    def end(self, error: RequestError | None = None, *, ring: bool = True) -> None:
        """Says that nothing more will come, and why; once. For any thread. `ring` as in `put`."""
        with self._lock:
            if self._ended:
                return
            self._ended, self._error = True, error
        if ring:
            self._wake()

    async def take(self) -> list[Event]:
        """All that waits, in order; waits for something if nothing does. Empty at the end. Raises RequestError."""
        while True:
            await self._ready.wait()
            with self._lock:
                self._ready.clear()
                events, was_full = list(self._events), self._held >= CAPACITY
                self._events.clear()
                self._held = 0
                if not events and self._ended:
                    self._ready.set()  # and so for whoever asks again
                    if self._error is not None:
                        raise self._error
                    return []
                if self._ended:
                    self._ready.set()
            if events:
                if was_full:
                    self._on_room()
                return events

    def abandon(self) -> None:
        """Says that nobody will take any more. For the taking task."""
        self._abandoned = True
        self._on_room()

    def _wake(self) -> None:
        ring([self])
