"""Runs jobs: one thread, one model, a step of all jobs at once.

Jobs that write share a batch, and each has a slot in it; given targets, and models that cannot be run in slots, take
their turns between its steps. What one job writes does not depend on the others. A job that nobody reads waits, and
gives its place to others that wait for one; a job that nobody wants any more, or whose deadline has passed, ends before
its next step. The engine knows nothing of gRPC.
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

from .batch import Batch, Seat
from .bursts import Bursts
from .decoding import attribute
from .errors import RequestError, internal
from .jobs import Decoding, Event, Job
from .memory import slots_within
from .models import LoadedModel, ModelError
from .outbox import Outbox, ring
from .threads import Threads

log = logging.getLogger(__name__)


# Seconds for which a reader may take nothing, and keep its place in the batch all the same.
_SLOW = 0.25


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on."""

    running: int = 32  # slots, each with a cache in memory; and jobs that are worked on alone
    waiting: int = 1024  # jobs that wait, for their turn or with a cache for a slow reader, before more are refused
    memory_fraction: float = 0.5  # of the memory that is free at start, for the slots' caches
    threads: tuple[int, ...] = ()  # the numbers to choose from; none or one: as many as torch has been told to use


@dataclass(eq=False)
class Ticket:
    """A job on its way through the engine. Times are of `time.monotonic`, in seconds."""

    job: Job
    outbox: Outbox
    deadline: float | None = None
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    events: Iterator[Event] | None = None  # of a job that is worked on alone
    seat: Seat | None = None  # of one in the batch
    full_since: float | None = None  # when its outbox was first seen full


class Engine:
    """One model's worker. `start` before `submit`; `stop` ends what still runs with UNAVAILABLE."""

    def __init__(self, loaded: LoadedModel, limits: Limits | None = None) -> None:
        self.loaded = loaded
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._something = threading.Event()  # to do: a new job, room in an outbox, a job given up, or the end
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []
        self._joining: list[Ticket] = []  # about to get a slot
        self._parked: list[Ticket] = []  # begun, and without a slot: their readers are slow, and others waited
        self._stopping = False
        self._ready = threading.Event()
        # A compiled step is compiled for its number of threads, and what a GPU does takes as long with any.
        is_free = loaded.model.device.type == "cpu" and not (loaded.layout is not None and loaded.layout.is_compiled)
        self._threads = Threads(self._limits.threads if is_free else ())
        self._bursts = Bursts()
        self._hindrance: Exception | None = None
        self.slots = slots_within(loaded, self._limits.running, self._limits.memory_fraction)
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {loaded.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread, and waits until it can work: a compiled step takes a minute. Raises ModelError."""
        layout = self.loaded.layout
        if layout is not None:
            size = layout.bytes_of_slot / 1e6
            lengths = f"{self.loaded.max_source_tokens} source and {self.loaded.max_target_tokens} target tokens"
            if not self.loaded.is_encoder_decoder:
                lengths = f"{self.loaded.max_target_tokens} tokens"
            log.info("%s has %d slots of %s, %.1f MB each", self.loaded.name, self.slots, lengths, size)
        self._thread.start()
        self._ready.wait()
        if self._hindrance is not None:
            log.debug("starting failed", exc_info=self._hindrance)
            reason = str(self._hindrance).strip().partition("\n")[0]
            raise ModelError(f"cannot run {self.loaded.name}: {reason}") from self._hindrance

    def stop(self) -> None:
        """Ends all jobs and the thread, and waits for it."""
        with self._lock:  # whoever submits has either been seen by now or sees this
            self._stopping = True
        self._something.set()
        if self._thread.is_alive():
            self._thread.join()
        with self._lock:
            left = [*self._running, *self._parked, *self._joining, *self._waiting]
            for tickets in (self._running, self._parked, self._joining, self._waiting):
                tickets.clear()
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
            waiting = len(self._waiting) + len(self._parked)
            if waiting >= self._limits.waiting:
                message = f"{waiting} requests are waiting already"
                raise RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", message, retry_after=1.0)
            self._waiting.append(ticket)
        self._something.set()
        return ticket

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                self._make_batch()
            except Exception as error:  # such as a compiler's
                self._hindrance = error
                return
            finally:
                self._ready.set()
            while not self._stopping:
                self._something.clear()
                try:
                    self._gather()
                    self._admit()
                    worked = self._round()
                except Exception:  # not a request's fault, but ours: those that wait must not wait for ever
                    log.exception("the engine of %s failed", self.loaded.name)
                    self._start_anew()
                    continue
                # Anything that happens from here on sets the event again, so nothing is missed by waiting.
                if not worked:
                    self._something.wait(self._patience())

    def _make_batch(self) -> None:
        if self.loaded.layout is not None:
            self._batch = Batch(self.loaded, self.loaded.layout, self.slots)

    def _start_anew(self) -> None:
        """Ends all that has begun, in a state that nobody knows, with INTERNAL; stops if it cannot begin again."""
        for begun in (self._running, self._parked, self._joining):
            for ticket in begun:
                ticket.outbox.end(internal())
            begun.clear()
        self._batch = None  # its memory first
        try:
            self._make_batch()
        except Exception:
            log.critical("the engine of %s cannot go on", self.loaded.name, exc_info=True)
            with self._lock:
                self._stopping = True
                left = list(self._waiting)
                self._waiting.clear()
            for ticket in left:
                ticket.outbox.end(_stopped())

    def _gather(self) -> None:
        """Lets a burst come in, where nobody is worked on who would wait: sources are read together."""
        if self._waiting and not self._running and not self._parked and self.loaded.is_encoder_decoder:
            self._bursts.gather(lambda: len(self._waiting), self._are_enough)

    def _are_enough(self) -> bool:
        """Whether others would not be read together with those who wait."""
        layout = self.loaded.layout
        with self._lock:
            tokens = [len(ticket.job.source.tokens) for ticket in self._waiting]
        return len(tokens) >= self.slots or (layout is not None and sum(tokens) >= layout.together)

    def _admit(self) -> None:
        """Lets waiting jobs in, first come first served, and drops those that have lost their reader or their time.

        A job whose reader is slow makes room for those that wait. It came before them, and goes on before them.
        """
        self._drop_those_over(time.monotonic())
        for ticket in [ticket for ticket in self._parked if not ticket.outbox.full]:
            if not self._make_room(is_joining=ticket.seat is not None):
                break
            if ticket.seat is not None:
                assert self._batch is not None
                self._batch.unpark(ticket.seat)
            self._parked.remove(ticket)
            self._running.append(ticket)
        while self._waiting:  # others only add to it
            is_joining = self._batch is not None and isinstance(self._waiting[0].job.target, Decoding)
            if not self._make_room(is_joining=is_joining, taken=len(self._joining)):
                break
            with self._lock:
                ticket = self._waiting.popleft()
            ticket.started = time.monotonic()
            if is_joining:
                self._joining.append(ticket)
            else:
                ticket.events = attribute(self.loaded, ticket.job)
                self._running.append(ticket)
        if self._joining:
            self._join()

    def _drop_those_over(self, now: float) -> None:
        with self._lock:
            over = [ticket for ticket in self._waiting if _is_over(ticket, now)]
            for ticket in over:
                self._waiting.remove(ticket)
        for ticket in over:
            ticket.outbox.end(_expired())
        for ticket in [ticket for ticket in self._parked if _is_over(ticket, now)]:
            self._end(self._parked, ticket, _expired())

    def _make_room(self, *, is_joining: bool, taken: int = 0) -> bool:
        """Whether one more job can be worked on, in the batch or alone; one whose reader is slow gives way.

        `taken` are places in the batch that are as good as taken.
        """
        if is_joining:
            assert self._batch is not None
            has_room = self._batch.room > taken
        else:
            has_room = sum(ticket.seat is None for ticket in self._running) < self._limits.running
        if has_room:
            return True
        same = (ticket for ticket in self._running if (ticket.seat is not None) == is_joining)
        slow = next((ticket for ticket in same if ticket.outbox.full), None)
        if slow is None:
            return False
        self._park(slow)
        return True

    def _join(self) -> None:
        assert self._batch is not None
        self._bursts.begun([ticket.arrived for ticket in self._joining], was_idle=not self._running)
        seats = self._batch.join([ticket.job for ticket in self._joining])
        tickets, self._joining = self._joining, []
        self._running.extend(tickets)
        told: list[Outbox] = []
        for ticket, seat in zip(tickets, seats, strict=True):
            if isinstance(seat, Seat):
                ticket.seat = seat
                for event in seat.news:
                    ticket.outbox.put(event, ring=False)
                # Who steps next is told of that as well: to send the one would hold up the other, by a third of it.
                if seat.reads or len(seat.news) > 1:
                    told.append(ticket.outbox)
                seat.news.clear()
            else:
                self._fail(ticket, seat)
        ring(told)

    def _round(self) -> bool:
        """Takes one step of each job that can. Returns whether any could."""
        worked = False
        for ticket in list(self._running):
            if self._stopping:
                return True
            if _is_over(ticket, time.monotonic()):
                worked = True  # its place is free: somebody who waits may come in
                self._finish(ticket, _expired())
            elif ticket.seat is None and not ticket.outbox.full:
                worked = True
                self._advance(ticket)
        return self._step() or worked

    def _step(self) -> bool:
        """Takes one step of the batch. Returns whether anybody in it could."""
        ready = {ticket.seat: ticket for ticket in self._running if ticket.seat is not None and not ticket.outbox.full}
        if not ready:
            return False
        assert self._batch is not None
        self._park_the_slow(time.monotonic())
        reading = next((seat for seat in ready if seat.reads), None)
        if reading is not None:  # a part of one long prompt at a time, so that nobody waits for all of them
            try:
                self._batch.read(reading)
            except Exception as error:
                self._fail(ready.pop(reading), error)
        writing = [seat for seat in ready if not seat.reads]
        if not writing:
            return True
        with self._threads.step(len(writing)):
            news = list(self._batch.step(writing))
        told_to: list[Outbox] = []
        ended: list[Ticket] = []
        for seat, told in news:
            ticket = ready[seat]
            if isinstance(told, Exception):
                self._fail(ticket, told)
                continue
            for event in told:
                ticket.outbox.put(event, ring=False)
            told_to.append(ticket.outbox)
            if seat.writer.ended:
                ticket.outbox.end(ring=False)
                ended.append(ticket)
        ring(told_to)
        # To free slots takes a moment, in which those who have ended may learn of it.
        for ticket in ended:
            self._finish(ticket, None)
        return True

    def _park_the_slow(self, now: float) -> None:
        """Takes those out of the batch whose readers have been slow for a while: in their slots they run along."""
        for ticket in [ticket for ticket in self._running if ticket.seat is not None]:
            if not ticket.outbox.full:
                ticket.full_since = None
            elif ticket.full_since is None:
                ticket.full_since = now
            elif now - ticket.full_since > _SLOW:
                self._park(ticket)

    def _park(self, ticket: Ticket) -> None:
        """Makes a job wait whose reader is slow, without a place."""
        if ticket.seat is not None:
            assert self._batch is not None
            self._batch.park(ticket.seat)
        ticket.full_since = None
        self._running.remove(ticket)
        self._parked.append(ticket)

    def _advance(self, ticket: Ticket) -> None:
        assert ticket.events is not None
        try:
            event = next(ticket.events, None)
        except Exception as error:  # one request's fault must not end the others
            self._fail(ticket, error)
        else:
            if event is None:
                self._finish(ticket, None)
            else:
                ticket.outbox.put(event)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        if not isinstance(error, RequestError):
            log.error("request %s failed", ticket.job.request_id, exc_info=error)
            error = internal()
        self._finish(ticket, error)

    def _finish(self, ticket: Ticket, error: RequestError | None) -> None:
        self._end(self._running, ticket, error)

    def _end(self, among: list[Ticket], ticket: Ticket, error: RequestError | None) -> None:
        among.remove(ticket)
        ticket.events = None  # and with it the cache
        if ticket.seat is not None:
            assert self._batch is not None
            self._batch.leave(ticket.seat)
            ticket.seat = None
        ticket.outbox.end(error)

    def _patience(self) -> float | None:
        """Seconds until the first deadline; None if there is none."""
        with self._lock:
            deadlines = [t.deadline for t in [*self._running, *self._parked, *self._waiting] if t.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None


def _is_over(ticket: Ticket, now: float) -> bool:
    return ticket.outbox.abandoned or (ticket.deadline is not None and now >= ticket.deadline)


def _expired() -> RequestError:
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline has passed")


def _stopped() -> RequestError:
    message = "the server is shutting down"
    return RequestError(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=1.0)
