"""What an engine's thread does now, and whether it has done that for too long. Reads the thread; never waits for it."""

from __future__ import annotations

import enum
import logging
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeAlias

log = logging.getLogger(__name__)

# The first rounds may take this many times as long: libraries choose and compile their kernels in them.
_FIRST_ROUNDS, _FIRST_FACTOR = 50, 10

# How many ids of requests, and how many functions, a line of the log has at most.
_MAX_IDS, _MAX_PLACES = 16, 3


class Phase(enum.Enum):
    """What an engine's thread can do. The value says so in the log, before the requests that it is done for."""

    RESTING = "waiting for"  # for work; or it begins anew
    SCHEDULING = "scheduling, among"
    READING_SOURCES = "reading the sources of"
    FOLLOWING = "the events of follow streams, among"
    READING_TARGETS = "reading given targets, among"
    COMPUTING = "a pass without a decode step of"
    READING_PROMPT = "reading a part of the prompt of"
    DECODING = "a decode step of"
    DELIVERING = "delivering the outputs of"


class HasRequest(Protocol):
    """A sequence, or the engine's state of a request."""

    request: Any  # with a `request_id`


Activity: TypeAlias = tuple[Phase, Collection[HasRequest]]
"""A phase, and the requests that it is for. Each activity is a new object: so a watchdog sees that work goes on."""

RESTING: Activity = (Phase.RESTING, ())


class Watchdog:
    """Looks at what one engine's thread does, from another thread.

    Attributes:
        activity: What the thread does. The thread sets it, and does nothing else for the watchdog.
        num_rounds: How many rounds the thread has begun.
    """

    def __init__(self, name: str, seconds: float, on_change: Callable[[bool], None]) -> None:
        """`name` is the model's; `seconds` are those after which the thread counts as stalled.

        `on_change` is called with whether the thread goes on, when it has stalled and when it has moved on.
        """
        self.activity = RESTING
        self.num_rounds = 0
        self.interval = min(1.0, seconds / 4)
        self._name = name
        self._seconds = seconds
        self._on_change = on_change
        self._seen = RESTING
        self._since = 0.0  # when this activity was first seen
        self._has_stalled = False

    def look(self, thread_id: int | None) -> None:
        """Looks at what the thread does, and reports a stall or its end. To be called once in each `interval`."""
        now = time.monotonic()
        activity = self.activity
        if activity is not self._seen:
            if self._has_stalled:
                self._report_end(now)
            self._seen, self._since = activity, now
        elif activity is not RESTING and not self._has_stalled:
            factor = _FIRST_FACTOR if self.num_rounds <= _FIRST_ROUNDS else 1
            if now - self._since > self._seconds * factor:
                self._report_stall(now, thread_id)

    def _report_stall(self, now: float, thread_id: int | None) -> None:
        self._has_stalled = True
        log.error(
            "the engine of %s has been at the same work for %.1f s: %s%s; health checks say NOT_SERVING",
            self._name,
            now - self._since,
            _describe(self._seen),
            _find_place(thread_id),
        )
        self._on_change(False)

    def _report_end(self, now: float) -> None:
        self._has_stalled = False
        seconds = now - self._since
        log.warning("the engine of %s goes on after %.1f s: %s", self._name, seconds, _describe(self._seen))
        self._on_change(True)


def _describe(activity: Activity) -> str:
    """Says what the work is, and for which requests."""
    phase, holders = activity
    ids = [holder.request.request_id for holder in [*holders]]
    shown = ", ".join(ids[:_MAX_IDS]) + (", ..." if len(ids) > _MAX_IDS else "")
    return f"{phase.value} {len(ids)} requests ({shown})"


def _find_place(thread_id: int | None) -> str:
    """Says which functions a thread runs, the innermost first."""
    frame = None if thread_id is None else sys._current_frames().get(thread_id)
    places: list[str] = []
    while frame is not None and len(places) < _MAX_PLACES:
        code = frame.f_code
        places.append(f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})")
        frame = frame.f_back
    return f", at {' of '.join(places)}" if places else ""
