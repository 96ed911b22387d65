"""TextStream: a stream of a client with many texts, which end each for itself. What all RPCs of this kind share.

One task reads requests, and one task sends: it wakes once for a step of all texts. Flow control holds in both
directions, since a text counts until its last event is sent.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import Sequence

from ...engine import OutputQueue, ReadyQueues
from ...errors import RequestError, stopped, too_old
from ..call import EOF, Call


class TextStream(abc.ABC):
    """One stream with its texts. For one event loop.

    A subclass answers requests and sends events. It counts a text in `_num_open` from its request until its last event
    is sent, and sets `_has_room` when it counts fewer.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._ready = ReadyQueues()
        self._num_open = 0  # texts whose last event is not sent
        self._max_open = min(call.limits.max_texts_per_stream, call.max_requests)
        self._has_room = asyncio.Event()
        call.cancel_text = self._cancel

    async def run(self) -> None:
        """Answers requests until the client has closed its side and all texts have ended. Raises RequestError."""
        await self._call.send_headers()
        reading = asyncio.create_task(self._read_requests())
        draining = asyncio.create_task(self._drain(reading))
        reading.add_done_callback(lambda _: self._ready.wake())
        try:
            while self._num_open or not reading.done():
                await self._send_events(deque(await self._ready.wait()))
                _check_reading(reading, self._call.last_error)
            _check_reading(reading, self._call.last_error)
            if self._call.last_error is not None:
                raise self._call.last_error
        finally:
            # All ends before the first `await`: gRPC cancels the call again when it hears that the client has gone, and
            # a task that is cancelled before it begins does nothing.
            for task in (reading, draining):
                task.cancel()
            ending = self._close()
            await asyncio.gather(reading, draining, *ending, return_exceptions=True)

    async def _drain(self, reading: asyncio.Task[None]) -> None:
        """Waits until the server is about to end, or the stream is too old. Then no further request is read."""
        max_age, error = self._call.limits.max_stream_age, stopped()
        try:
            await asyncio.wait_for(self._call.drained.wait(), max_age)
        except asyncio.TimeoutError:
            error = too_old(max_age)
        if not reading.done():
            self._call.last_error = error
            reading.cancel()

    async def _read_requests(self) -> None:
        """Reads requests to the end. Raises RequestError for a request that is no message."""
        data = await self._call.read_next()
        while data is not EOF:
            await self._answer(data)
            await self._wait_for_room()
            data = await self._call.read_next("later_request")

    async def _wait_for_room(self, num_texts: int = 1) -> None:
        """Waits until so many more texts may be open."""
        while self._is_full or self._num_open + num_texts > max(self._max_open, num_texts):
            self._has_room.clear()
            await self._has_room.wait()

    @property
    def _is_full(self) -> bool:
        """Whether no further request is read now."""
        return self._num_open >= self._max_open

    @abc.abstractmethod
    async def _answer(self, data: bytes) -> None:
        """Begins to answer a request. Raises RequestError for what is no message: the stream ends."""

    @abc.abstractmethod
    async def _send_events(self, queues: deque[OutputQueue]) -> None:
        """Sends what has failed, and what some queues have."""

    @abc.abstractmethod
    def _cancel(self, request_id: str) -> int:
        """Cancels the texts of an id. Returns how many there were."""

    @abc.abstractmethod
    def _close(self) -> Sequence[asyncio.Task[None]]:
        """Ends all texts. The stream has ended. Returns the tasks that have been cancelled."""


def _check_reading(reading: asyncio.Task[None], last_error: RequestError | None) -> None:
    """Raises what has ended the task that reads requests: RequestError, or CancelledError where the client has gone."""
    if reading.done() and not (reading.cancelled() and last_error is not None):
        reading.result()
