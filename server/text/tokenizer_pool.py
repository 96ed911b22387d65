"""Threads for texts that take long to tokenize, so that neither the event loop nor the engine waits for them.

Short texts go first, but no text waits for ever: a text counts as if it had come later, by its size.
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

# How many threads. Threads take turns with Python's lock: more threads would hold up all others.
_NUM_THREADS = 2

# A text counts as if it had come a second later for this many bytes.
_BYTES_PER_SECOND = 16 * 1024


class TokenizerPool:
    """A priority queue for a few threads. For one event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="tokenizer")
        self._num_free = _NUM_THREADS
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []

    async def run(self, num_bytes: int, function: Callable[..., T], *args: Any) -> T:
        """Calls a function in a thread, in the order of text sizes and arrival. Returns what the function returns."""
        loop = asyncio.get_running_loop()
        if self._num_free:
            self._num_free -= 1
        else:
            turn: asyncio.Future[None] = loop.create_future()
            priority = time.monotonic() + num_bytes / _BYTES_PER_SECOND
            heapq.heappush(self._waiting, (priority, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._free_thread()
                raise
        call = loop.run_in_executor(self._threads, function, *args)
        call.add_done_callback(lambda _: self._free_thread())
        return await call

    def _free_thread(self) -> None:
        """Gives a thread to the next waiting call, if there is one."""
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():  # the call may have been cancelled meanwhile
                turn.set_result(None)
                return
        self._num_free += 1

    def close(self) -> None:
        """Ends the threads as soon as their calls have ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)
