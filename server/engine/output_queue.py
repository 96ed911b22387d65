"""The queue of one request's outputs, from the engine's thread to an asyncio task: the one place where threads meet.

Bounded by bytes, so that a slow reader costs no more memory than the bound: the engine leaves the request alone until
there is room again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from ..errors import RequestError
from ..request import EncoderSelf, EncoderStates, Output, Step, Unit

# Bytes held for one reader at most, with what is being sent, by default. The limit is checked after a put.
CAPACITY = 256 * 1024

# Bytes of an output beside its arrays: its texts, and Python's objects.
_OUTPUT_BYTES = 512


def size_of(output: Output) -> int:
    """About how many bytes an output holds."""
    size = _OUTPUT_BYTES
    if isinstance(output, (Step, Unit)):
        if output.cross is not None:
            size += output.cross.nbytes
        if output.decoder_self is not None:
            size += output.decoder_self.nbytes
    elif isinstance(output, EncoderSelf):
        size += output.attention.nbytes
    elif isinstance(output, EncoderStates):
        size += output.source.nbytes + output.target.nbytes
    return size


def notify(queues: Iterable[OutputQueue]) -> None:
    """Wakes the tasks that wait for outputs of some queues, by one call to each event loop.

    With a call for each queue, the loop's thread would run at the first call, and the engine would wait for Python's
    lock at each of the others: on 2 cores, a millisecond between two steps of 8 requests.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[OutputQueue]] = {}
    for queue in queues:
        by_loop.setdefault(queue._ready.loop, []).append(queue)
    for loop, group in by_loop.items():
        _notify_loop(loop, group)


def _notify_loop(loop: asyncio.AbstractEventLoop, queues: list[OutputQueue]) -> None:
    def set_ready() -> None:
        for queue in queues:
            queue._ready.add(queue)

    ended = [queue for queue in queues if queue._is_ended]  # read before the call, which announces these ends
    try:
        loop.call_soon_threadsafe(set_ready)
    except RuntimeError:  # the loop is closed: the server has stopped, and no task waits
        for queue in queues:
            queue._is_cancelled = True
    for queue in ended:
        queue._is_end_announced = True


class ReadyQueues:
    """The queues of one task that may have outputs. A task that reads many queues wakes once for all of them.

    For one event loop: make it there, and call its methods there.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._queues: dict[OutputQueue, None] = {}  # in the order in which they became ready
        self._event = asyncio.Event()

    def add(self, queue: OutputQueue) -> None:
        """Adds a queue, and wakes the task."""
        self._queues[queue] = None
        self._event.set()

    def wake(self) -> None:
        """Wakes the task, which may find no queue."""
        self._event.set()

    async def wait(self) -> list[OutputQueue]:
        """Waits until the task is woken. Returns the queues that have become ready, and forgets them."""
        await self._event.wait()
        self._event.clear()
        queues = list(self._queues)
        self._queues.clear()
        return queues


class OutputQueue:
    """The outputs of one request. The engine's thread puts, one asyncio task gets.

    Attributes:
        capacity: The number of bytes from which on the queue is full.
    """

    def __init__(
        self, on_room: Callable[[], None], ready: ReadyQueues | None = None, capacity: int | None = None
    ) -> None:
        """Made in the event loop of the task that gets. `on_room` is called when there is room, or at `cancel`.

        With `ready`, the task waits for several queues, and takes outputs by `take`. `capacity` is the number of bytes
        from which on the queue is full; None: CAPACITY.
        """
        self.capacity = CAPACITY if capacity is None else capacity
        self.on_full: Callable[[], None] = lambda: None  # for the engine's thread
        self.on_sent: Callable[[int], None] | None = None  # gets the bytes of what is sent
        self._ready = ready or ReadyQueues()
        self.on_room = on_room
        self._lock = threading.Lock()
        self._outputs: deque[tuple[Output, int]] = deque()  # each with its size
        self._held_bytes = 0
        self._full_since: float | None = None
        self._sending_bytes = 0  # of the held bytes: the task has them, and they may not be sent yet
        self._error: RequestError | None = None
        self._is_ended = False
        self._is_end_announced = False
        self._is_cancelled = False

    @property
    def is_full(self) -> bool:
        """Whether the engine should put nothing."""
        return self._full_since is not None

    @property
    def full_since(self) -> float | None:
        """Since when the queue is full, by `time.monotonic`; None where it is not."""
        return self._full_since

    @property
    def is_cancelled(self) -> bool:
        """Whether the task gets no more outputs."""
        return self._is_cancelled

    @property
    def error(self) -> RequestError | None:
        """Why the request has ended before its time, whether the reader has come to its end or not."""
        return self._error

    @property
    def sending_bytes(self) -> int:
        """The bytes of the outputs that were taken and are not sent. For the task that gets."""
        return self._sending_bytes

    @property
    def has_unsent(self) -> bool:
        """Whether there are outputs that are not sent yet."""
        return self._held_bytes > 0

    @property
    def has_more(self) -> bool:
        """Whether `take` would give something now, the end included. For the task that gets."""
        return bool(self._outputs) or self._is_ended

    def put(self, output: Output, *, notifies: bool = True) -> None:
        """Adds an output. For the engine's thread. With `notifies=False`, the caller calls `notify` afterwards."""
        size = size_of(output)
        with self._lock:
            self._outputs.append((output, size))
            self._held_bytes += size
            if self._full_since is None and self._held_bytes >= self.capacity:
                self._full_since = time.monotonic()
                self.on_full()
        if notifies:
            notify([self])

    def announce(self) -> None:
        """Wakes the task, after puts without notice in the task's own event loop."""
        self._ready.add(self)

    def end(self, error: RequestError | None = None, *, notifies: bool = True) -> None:
        """Ends the queue, with an error or without. For any thread. `notifies` as in `put`.

        The first call sets the error. A later call only wakes the task, should the first have failed to.
        """
        with self._lock:
            if not self._is_ended:
                self._is_ended, self._error = True, error
        if notifies and not self._is_end_announced:
            notify([self])

    async def get(self, max_bytes: int) -> list[Output]:
        """The next outputs in order, as `take` gives them. Waits where there is none.

        The outputs of the call before count as sent. Empty at the end. Raises RequestError.
        """
        self.release_sent()
        while (outputs := self.take(max_bytes)) is None:
            await self._ready.wait()
        return outputs

    def take(self, max_bytes: int) -> list[Output] | None:
        """The next outputs in order: at most `max_bytes` together, or a single output. None where there is none yet.

        They count as held until `release_sent`. Empty at the end. Raises RequestError.
        """
        outputs: list[Output] = []
        with self._lock:
            while self._outputs and (not outputs or self._sending_bytes + self._outputs[0][1] <= max_bytes):
                output, size = self._outputs.popleft()
                outputs.append(output)
                self._sending_bytes += size
            if outputs or not self._is_ended:
                return outputs or None
        if self._error is not None:
            raise self._error
        return []

    def release_sent(self, num_bytes: int | None = None) -> None:
        """Says that the outputs that were taken are sent, or so many bytes of them. For the task that gets."""
        with self._lock:
            sent = self._sending_bytes if num_bytes is None else num_bytes
            self._held_bytes -= sent
            self._sending_bytes -= sent
            has_room = self._full_since is not None and self._held_bytes < self.capacity
            if has_room:
                self._full_since = None
        if has_room:
            self.on_room()
        if sent and self.on_sent is not None:
            self.on_sent(sent)

    def cancel(self) -> None:
        """Says that the task gets no more outputs, and drops the waiting ones. For the task that gets."""
        self._is_cancelled = True
        with self._lock:
            self._outputs.clear()
            self._held_bytes = self._sending_bytes = 0
            self._full_since = None
        self.on_room()
