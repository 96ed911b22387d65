"""Runs jobs: one thread, one model, a step of each job in turn.

Jobs are independent: each has its own cache and its own random generator, so what one writes does not depend on the
others. A job that nobody reads waits; a job that nobody wants any more, or whose deadline has passed, ends before its
next step. The engine knows nothing of gRPC.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import torch

from .decoding import attribute
from .errors import RequestError, internal
from .jobs import Event, Job
from .models import LoadedModel
from .outbox import Outbox

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on."""

    running: int = 32  # jobs that are worked on in turn, each with a cache in memory
    waiting: int = 1024  # jobs in the queue before more are refused


@dataclass(eq=False)
class Ticket:
    """A job on its way through the engine. Times are of `time.monotonic`, in seconds."""

    job: Job
    outbox: Outbox
    deadline: float | None = None
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    events: Iterator[Event] | None = None


class Engine:
    """One model's worker. `start` before `submit`; `stop` ends what still runs with UNAVAILABLE."""

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None) -> None:
        self.loaded = loaded
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._something = threading.Event()  # to do: a new job, room in an outbox, a job given up, or the end
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"engine {loaded.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends all jobs and the thread, and waits for it."""
        with self._lock:  # whoever submits has either been seen by now or sees this
            self._stopping = True
        self._something.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            left = [*self._running, *self._waiting]
            self._running.clear()
            self._waiting.clear()
        for ticket in left:
            ticket.outbox.end(_stopped())

    def wake(self) -> None:
        """Makes the engine look at its jobs again. For any thread."""
        self._something.set()

    def submit(self, job: Job, outbox: Outbox, deadline: float | None = None) -> Ticket:
        """Queues a job; its events come to `outbox`. Raises RequestError when the queue is full."""
        ticket = Ticket(job, outbox, deadline)
        with self._lock:
            if self._stopping:
                raise _stopped()
            if len(self._waiting) >= self._limits.waiting:
                message = f"{len(self._waiting)} requests are waiting already"
                raise RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", message, retry_after=1.0)
            self._waiting.append(ticket)
        self._something.set()
        return ticket

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._stopping:
                self._something.clear()
                self._admit()
                # Anything that happens from here on sets the event again, so nothing is missed by waiting.
                if not self._round():
                    self._something.wait(self._patience())

    def _admit(self) -> None:
        """Lets waiting jobs in, first come first served, and drops those that have lost their reader or their time."""
        now = time.monotonic()
        with self._lock:
            for ticket in [ticket for ticket in self._waiting if _is_over(ticket, now)]:
                self._waiting.remove(ticket)
                ticket.outbox.end(_expired())
            while self._waiting and len(self._running) < self._limits.running:
                ticket = self._waiting.popleft()
                ticket.started = now
                ticket.events = attribute(self.loaded, ticket.job)
                self._running.append(ticket)

    def _round(self) -> bool:
        """Takes one step of each job that can. Returns whether any could."""
        worked = False
        for ticket in list(self._running):
            if self._stopping:
                return True
            if _is_over(ticket, time.monotonic()):
                worked = True  # its place is free: somebody who waits may come in
                self._finish(ticket, _expired())
            elif not ticket.outbox.full:
                worked = True
                self._advance(ticket)
        return worked

    def _advance(self, ticket: Ticket) -> None:
        assert ticket.events is not None
        try:
            event = next(ticket.events, None)
        except RequestError as error:
            self._finish(ticket, error)
        except Exception:  # one request's fault must not end the others
            log.exception("request %s failed", ticket.job.request_id)
            self._finish(ticket, internal())
        else:
            if event is None:
                self._finish(ticket, None)
            else:
                ticket.outbox.put(event)

    def _finish(self, ticket: Ticket, error: RequestError | None) -> None:
        self._running.remove(ticket)
        ticket.events = None  # and with it the cache
        ticket.outbox.end(error)

    def _patience(self) -> float | None:
        """Seconds until the first deadline; None if there is none."""
        with self._lock:
            deadlines = [t.deadline for t in [*self._running, *self._waiting] if t.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _is_over(ticket: Ticket, now: float) -> bool:
    return ticket.outbox.abandoned or (ticket.deadline is not None and now >= ticket.deadline)


def _expired() -> RequestError:
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline has passed")


def _stopped() -> RequestError:
    message = "the server is shutting down"
    return RequestError(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=1.0)
