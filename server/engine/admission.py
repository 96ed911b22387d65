"""All requests of an engine that have not ended, the waiting ones in a bounded queue. `waiting_queue` has the order.

Shared by the event loop, which submits, and the engine's thread, which starts requests. Knows no models.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Hashable

from ..errors import RequestError, broken, client_queue_full, features_full, queue_full, stopped
from ..operations import Identity, ModelMetrics
from .request_state import RequestState
from .waiting_queue import HeldBack, WaitingQueue

# The weight of one request in the average time of a request.
_AVERAGE_WEIGHT = 0.1


class Reservation:
    """A place in an admission queue, until a request takes it or it is released; a context that releases it."""

    def __init__(self, admission: AdmissionQueue, client: Hashable = None, num_bytes: int = 0) -> None:
        self.client = client
        self._num_bytes = num_bytes
        self._admission: AdmissionQueue | None = admission

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the place back, once."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission.release(self.client, self._num_bytes)


class AdmissionQueue:
    """The waiting requests of one engine, and a register of all its requests that have not ended. For any thread."""

    def __init__(self, capacity: int, max_bytes: int, metrics: ModelMetrics) -> None:
        """`capacity` is the most requests that may wait; `max_bytes` the most bytes that their recordings may have."""
        self._capacity, self._max_bytes = capacity, max_bytes
        self._metrics = metrics
        self._lock = threading.Lock()
        self._states: set[RequestState] = set()  # all that have not ended, wherever they are
        self._waiting: WaitingQueue[RequestState] = WaitingQueue()
        self._num_reserved = self._num_reserved_bytes = 0  # of requests that are being validated
        self._num_reserved_of: Counter[Hashable] = Counter()  # by clients
        self._needs_announcing = False  # from `hold_back` or `announce_later` until `late_requests`
        self._is_stopped = False
        self._has_failed = False
        self._average_seconds: float | None = None  # from the start of a request to its end, of late

    def __len__(self) -> int:
        return len(self._waiting)

    # ---- requests come ----------------------------------------------------------------------------------------------

    def reserve(self, client: Hashable, num_bytes: int = 0) -> Reservation:
        """Takes a place for a client's request whose recordings have so many bytes. Raises RequestError.

        Where the queue is full, the newest waiting requests of held-back clients end with QUEUE_FULL and give their
        places, and then those of the client with the most, as far as it has more than this client.
        """
        evicted: list[tuple[RequestState, RequestError]] = []
        try:
            with self._lock:
                self._check_open()
                self._check_client(client)
                while (error := self._find_lack(num_bytes)) is not None:
                    others, has_recordings = self._num_reserved_of[client], bool(error.field)
                    state = self._waiting.newest_held_back(client)
                    state = state or self._waiting.newest_of_largest(client, others, has_recordings=has_recordings)
                    if state is None:
                        raise error
                    self._waiting.remove(state)
                    evicted.append((state, error))
                self._num_reserved += 1
                self._num_reserved_bytes += num_bytes
                self._num_reserved_of[client] += 1
        finally:
            for state, error in evicted:
                self.close(state, error)
        return Reservation(self, client, num_bytes)

    def _check_client(self, client: Hashable) -> None:
        """Raises RequestError where as many requests wait as the client may have."""
        max_waiting = client.max_waiting if isinstance(client, Identity) else None
        if max_waiting and self._num_reserved_of[client] + self._waiting.count(client) >= max_waiting:
            raise client_queue_full(max_waiting)

    def _find_lack(self, num_bytes: int) -> RequestError | None:
        """Returns why no request with recordings of so many bytes may wait; None where one may."""
        num_waiting = len(self._waiting) + self._num_reserved
        if num_waiting >= self._capacity:
            return queue_full(num_waiting)
        num_held = self._waiting.num_bytes + self._num_reserved_bytes
        return features_full(num_held) if num_bytes and num_held + num_bytes > self._max_bytes else None

    def release(self, client: Hashable, num_bytes: int) -> None:
        """Gives a reserved place back."""
        with self._lock:
            self._num_reserved -= 1
            self._num_reserved_bytes -= num_bytes
            self._num_reserved_of -= Counter([client])  # keeps counts above 0 only

    def submit(self, state: RequestState, client: Hashable) -> None:
        """Adds a request. Raises RequestError."""
        with self._lock:
            self._check_open()
            self._states.add(state)
            self._waiting.add(state, client, state.request.max_num_tokens, state.request.feature_bytes)

    def _check_open(self) -> None:
        if self._is_stopped:
            raise self.refusal()

    def refusal(self) -> RequestError:
        """The error of a request that comes too late."""
        return broken() if self._has_failed else stopped()

    def hold_back(self, held_back: HeldBack) -> bool:
        """Says which requests come after others. Returns whether any request waits."""
        with self._lock:
            self._waiting.hold_back(held_back)
            self._needs_announcing = len(self._waiting) > 0
            return self._needs_announcing

    # ---- requests go ------------------------------------------------------------------------------------------------

    def next(self, *, is_idle: bool, has_time: bool) -> RequestState | None:
        """The request to start next. See `WaitingQueue.next`."""
        with self._lock:
            return self._waiting.next(is_idle=is_idle, has_time=has_time)

    def begin(self, state: RequestState, *, is_idle: bool, has_time: bool) -> bool | None:
        """Takes a request out, to start it. Returns whether it was held back; None if it is not the next any more."""
        with self._lock:
            if self._waiting.next(is_idle=is_idle, has_time=has_time) is not state:
                return None
            is_held_back = self._waiting.is_held_back(state)
            self._waiting.begin(state)
        self._metrics.queue_seconds.observe(time.monotonic() - state.arrival_time)
        return is_held_back

    def has_stalled(self, state: RequestState) -> bool:
        """Whether the reader of a request takes nothing, as far as is known."""
        with self._lock:
            return self._waiting.has_stalled(state)

    def pop_expired(self, now: float) -> list[RequestState]:
        """Takes out the waiting requests that are cancelled or past their deadline."""
        with self._lock:
            expired = [state for state in self._waiting if state.is_expired(now)]
            for state in expired:
                self._waiting.remove(state)
        return expired

    def late_requests(self, now: float, seconds: float) -> list[RequestState]:
        """The requests that have waited for so many seconds and have not got their first output."""
        if not self._needs_announcing:
            return []
        with self._lock:
            self._needs_announcing = False
            return [state for state in self._waiting if not state.is_announced and now - state.arrival_time > seconds]

    def announce_later(self) -> None:
        """Makes `late_requests` look again."""
        self._needs_announcing = True

    def source_lengths(self) -> list[int]:
        """The positions of each waiting request's source."""
        with self._lock:
            return [state.request.source_length for state in self._waiting]

    def deadlines(self) -> list[float]:
        """The deadlines of the waiting requests."""
        with self._lock:
            return [state.deadline for state in self._waiting if state.deadline is not None]

    def close(self, state: RequestState, error: RequestError | None) -> None:
        """Ends the queue of a request, and forgets it: the last that is done for it."""
        state.end(error, self._metrics.name)
        with self._lock:
            self._states.discard(state)
            if error is None and state.start_time is not None:
                seconds = time.monotonic() - state.start_time
                average = seconds if self._average_seconds is None else self._average_seconds
                self._average_seconds = average + (seconds - average) * _AVERAGE_WEIGHT

    # ---- the end ----------------------------------------------------------------------------------------------------

    def drain(self, seconds: float, num_slots: int) -> list[RequestState]:
        """Takes out the waiting requests that would not be done in so many seconds, in so many slots.

        How many would be done follows from what others have taken, or from how long those that run have run.
        """
        with self._lock:
            begun = [state.start_time for state in self._states if state.start_time is not None]
            each = self._average_seconds or time.monotonic() - min(begun, default=math.inf)
            num_turns = int(seconds / each) - 1 if each > 0 else len(self._waiting)  # running ones first
            dropped = list(self._waiting.in_turns())[max(0, num_turns) * num_slots :]
            for state in dropped:
                self._waiting.remove(state)
        return dropped

    def stop(self) -> None:
        """Takes no more requests."""
        with self._lock:  # a thread that submits has either been seen by now or sees this
            self._is_stopped = True

    def fail(self) -> None:
        """Takes no more requests: the engine has ended without `stop`."""
        with self._lock:
            self._has_failed, self._is_stopped = not self._is_stopped, True

    @property
    def is_stopped(self) -> bool:
        """Whether the engine has ended, or is to end."""
        return self._is_stopped

    @property
    def has_failed(self) -> bool:
        """Whether the engine has ended without `stop`."""
        return self._has_failed

    def take_all(self) -> list[RequestState]:
        """Takes out all waiting requests. Returns all requests that have not ended, started ones included."""
        with self._lock:
            self._waiting.clear()
            return list(self._states)

    def started(self) -> set[RequestState]:
        """The requests that have started and not ended."""
        with self._lock:
            return self._states.difference(self._waiting)
