"""A few threads for texts that take long to tokenize, so that neither the event loop nor the engine waits for them.

Short texts go first, but no text waits for ever: a long text counts as if it had come later. Knows sizes, not texts.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

# How many work at once. Threads take turns with Python's lock: more of them would hold up all others.
_AT_ONCE = 2

# Bytes for which a text counts as a second later.
_BYTES_A_SECOND = 16 * 1024


class Turns:
    """A queue for a few threads. For one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="texts")
        self._free = _AT_ONCE
        self._numbers = itertools.count()
        self._queue: list[tuple[float, int, asyncio.Future[None]]] = []

    async def run(self, size: int, function: Callable[..., T], *args: Any) -> T:
        """Calls a function in a thread, when it is the turn of something of that size."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            when = time.monotonic() + size / _BYTES_A_SECOND
            heapq.heappush(self._queue, (when, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()
                raise
        work = loop.run_in_executor(self._threads, function, *args)
        work.add_done_callback(lambda _: self._pass_on())
        return await work

    def _pass_on(self) -> None:
        """Gives a turn to the next."""
        while self._queue:
            *_, turn = heapq.heappop(self._queue)
            if not turn.done():  # given up meanwhile
                turn.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """Ends the threads once what they do is done."""
        self._threads.shutdown(wait=False, cancel_futures=True)
