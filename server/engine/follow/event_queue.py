"""The events of one follow stream, from an asyncio task to the engine's thread. Bounded by number."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable

from .events import FollowEvent, TargetToken

# Events that wait for the engine. A client that sends more waits for its turn.
MAX_EVENTS = 64


class EventQueue:
    """The events of one stream. One asyncio task puts, the engine's thread takes."""

    def __init__(self, on_event: Callable[[], None]) -> None:
        """Made in the event loop of the task that puts. `on_event` is called for each event."""
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._on_event = on_event
        self._events: deque[FollowEvent] = deque()  # deques are safe between two threads

    async def put(self, event: FollowEvent) -> None:
        """Adds an event. Waits until there is room."""
        while len(self._events) >= MAX_EVENTS:
            self._room.clear()
            if len(self._events) >= MAX_EVENTS:
                await self._room.wait()
        self._events.append(event)
        self._on_event()

    @property
    def first(self) -> FollowEvent | None:
        """The event that comes next; None where none waits."""
        return self._events[0] if self._events else None

    def target_ids(self, most: int) -> list[int]:
        """The tokens of the client that come next, at most so many, up to an event of another kind."""
        ids: list[int] = []
        for index in range(min(most, len(self._events))):  # the other thread may add events meanwhile
            event = self._events[index]
            if not isinstance(event, TargetToken):
                break
            ids.append(event.id)
        return ids

    def pop(self) -> None:
        """Takes the first event out. For the engine's thread."""
        was_full = len(self._events) >= MAX_EVENTS
        self._events.popleft()
        if was_full:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._room.set)
