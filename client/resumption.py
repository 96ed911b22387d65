"""When a broken stream is called again, and after which time."""

from __future__ import annotations

import time

import grpc

from .errors import DeadlineExceededError, SidelightError

# Seconds before the first try, if the server names no delay; each further try waits four times as long, to the limit.
_FIRST_DELAY, _MAX_DELAY = 0.2, 5.0

# The reasons of errors that end a stream though the server is well: it can be called again.
_REASONS = ("READER_STALLED",)


class Resumption:
    """How often the stream of one or many requests may be called again, and how much time is left for it."""

    def __init__(self, max_tries: int, timeout: float | None) -> None:
        """`max_tries` is the number of tries in a row that may fail. `timeout` is in seconds, from now."""
        self._max_tries = max_tries
        self._end = None if timeout is None else time.monotonic() + timeout
        self._num_tries = 0

    def note_progress(self) -> None:
        """Says that something has arrived: the tries are counted anew."""
        self._num_tries = 0

    def covers(self, error: SidelightError) -> bool:
        """Whether a stream with this error may be called again at all."""
        return self._max_tries > 0 and (error.status is grpc.StatusCode.UNAVAILABLE or error.reason in _REASONS)

    def next_delay(self, error: SidelightError) -> float:
        """Returns the seconds to wait before the next try. Raises the error if there is no further try."""
        if not self.covers(error) or self._num_tries >= self._max_tries:
            raise error
        delay = _FIRST_DELAY * 4**self._num_tries if error.retry_delay is None else error.retry_delay
        self._num_tries += 1
        return min(delay, _MAX_DELAY)

    def remaining(self) -> float | None:
        """Returns the seconds that are left for a call; None without a limit. Raises DeadlineExceededError at 0."""
        if self._end is None:
            return None
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise DeadlineExceededError("the timeout has passed", grpc.StatusCode.DEADLINE_EXCEEDED)
        return seconds
