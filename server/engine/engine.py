"""Runs jobs: one thread, one model, a step of all jobs at once.

Jobs that write share a batch, and each has a slot in it; given targets, and models that cannot be run in slots, take
their turns between its steps, for no more time than the steps take. What one job writes does not depend on the others.
A job that nobody reads waits, and gives its place to a waiting job; `admission` says which of these is next. A job that
nobody wants any more, or whose deadline has passed, ends before its next step. Whatever happens, each job's outbox
ends, and all of them if the thread should end. The engine knows nothing of gRPC.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import torch

from ..errors import RequestError, broken, expired, internal, queue_full, stalled, stopped
from ..memory import give_back, is_out_of_memory, out_of_memory
from ..models.loader import LoadedModel, ModelError
from ..request import DecodingParams, GivenTarget, Output, Request, Step
from ..runner.model_runner import ModelRunner, Seat
from ..runner.slot_budget import slots_that_fit
from ..runner.thread_tuner import ThreadTuner
from .admission import HeldBack, WaitingQueue
from .batching_delay import BatchingDelay
from .output_builder import attribute, begin
from .output_queue import OutputQueue, ring

log = logging.getLogger(__name__)


# Seconds for which a reader may take nothing, and keep its place in the batch all the same.
_SLOW = 0.25

# ... and keep its slot where too many readers are slow, at the cost of time at each step of the other jobs.
_LONG_SLOW = 5.25

# Seconds that the thread sleeps at most: a deadline may lie further away than a wait can be long.
_LONGEST_SLEEP = 60.0

# Seconds after which memory that was held for slow readers, and no more is, goes back to the system.
_GIVE_BACK = 5.0

# Seconds of work on jobs outside the batch between two looks at the waiting jobs.
_TURN = 0.02

# Seconds in which what is made already goes to one reader, and in which first events are put ahead of their turn.
_MOMENT = 0.002

# How often in a row the engine tries to begin again after a fault, before it ends.
_ATTEMPTS = 5

# Bytes of attention made at once that are kept for all readers together. What slow ones have not read is made again.
_WHOLE_BYTES = 128 * 1024**2

# Bytes of the caches that wait for slow readers, all together; or so many whole slots' where a slot takes more.
_PARKED_BYTES, _PARKED_SLOTS = 128 * 1024**2, 4


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine takes on."""

    running: int = 32  # slots, each with a cache in memory; and jobs that are worked on alone
    waiting: int = 1024  # jobs that wait for their turn, before more are refused
    memory_fraction: float = 0.5  # of the memory that is free at start, for the slots' caches
    threads: tuple[int, ...] = ()  # the numbers to choose from; none or one: as many as torch has been told to use
    stalled: int = 512  # jobs that wait for slow readers, each with a cache, before the first of them is given up


@dataclass(eq=False)
class RequestState:
    """A job on its way through the engine. Times are of `time.monotonic`, in seconds."""

    job: Request
    outbox: OutputQueue
    deadline: float | None = None
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    events: Iterator[Output] | None = None  # of a job that is worked on alone; of one in the batch, before its steps
    seat: Seat | None = None  # of one in the batch
    taken: int = 0  # how many of `events` have been put into its outbox
    is_made: bool = False  # whether the model's work for all that is left of `events` is done
    whole_bytes: int = 0  # of attention made at once, which `events` hold until all of it has been put
    cache_bytes: tuple[float | None, int] | None = None  # of its cache while its outbox is full, and since when that is
    is_announced: bool = False  # whether its first event was put before it began
    is_dropped: bool = False  # whether `events` must be made again, as far as they were not put


class Engine:
    """One model's worker. `start` before `submit`; `stop` ends what still runs with UNAVAILABLE."""

    def __init__(
        self, loaded: LoadedModel, limits: EngineConfig | None = None, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """`on_failure` is called, from another thread, if the engine ends without a call of `stop`."""
        self.loaded = loaded
        self._on_failure = on_failure
        self._limits = limits or EngineConfig()
        self._lock = threading.Lock()
        self._something = threading.Event()  # to do: a new job, room in an outbox, a job given up, or the end
        self._tickets: set[RequestState] = set()  # all that have not ended, wherever they are
        self._places = 0  # in the queue, for requests that are still being resolved
        self._waiting: WaitingQueue[RequestState] = WaitingQueue()
        self._running: list[RequestState] = []
        self._joining: list[RequestState] = []  # about to get a slot
        self._parked: list[RequestState] = []  # begun, and without a slot: their readers are slow, and others waited
        self._are_late = False  # whether waiting jobs may need their first event: readers were looked at meanwhile
        self._owed = 0.0  # seconds of steps before other work may go on, while there are steps; below 0, it may at once
        self._has_put_off = False  # in the last round, a job's next event
        self._held_at: float | None = None  # when something was last held for slow readers
        self._seconds: float | None = None  # that a job has taken of late, from its start to its end
        self._is_draining = False
        self._stopping = False
        self._has_failed = False
        self._ready = threading.Event()
        # A compiled step is compiled for its number of threads, and what a GPU does takes as long with any.
        is_free = loaded.model.device.type == "cpu" and not (loaded.backend is not None and loaded.backend.is_compiled)
        self._threads = ThreadTuner(self._limits.threads if is_free else ())
        self._bursts = BatchingDelay()
        self._hindrance: Exception | None = None
        self.slots = slots_that_fit(loaded, self._limits.running, self._limits.memory_fraction)
        # Those that are parked have left the slots' memory, and take their own.
        self._most_parked = max(1, slots_that_fit(loaded, self._limits.stalled, self._limits.memory_fraction / 2))
        self._batch: ModelRunner | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine {loaded.name}", daemon=True)
        self._watch = threading.Thread(target=self._watch_over, name=f"watch of {loaded.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread, and waits until it can work: a compiled step takes a minute. Raises ModelError."""
        backend = self.loaded.backend
        if backend is not None:
            size = backend.bytes_per_slot / 1e6
            lengths = f"{self.loaded.max_source_tokens} source and {self.loaded.max_target_tokens} target tokens"
            if not self.loaded.is_encoder_decoder:
                lengths = f"{self.loaded.max_target_tokens} tokens"
            log.info("%s has %d slots of %s, %.1f MB each", self.loaded.name, self.slots, lengths, size)
        self._thread.start()
        self._watch.start()
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
        if self._watch.is_alive():
            self._watch.join()

    def drain(self, seconds: float) -> None:
        """Takes no more jobs; ends those at once with UNAVAILABLE that wait and would not be done in so many seconds.

        For any thread.
        """
        with self._lock:
            self._is_draining = True
            left = list(self._waiting)[self._done_within(seconds) :]
            for ticket in left:
                self._waiting.remove(ticket)
        for ticket in left:
            self._close(ticket, self._refusal())
        self._something.set()

    def _done_within(self, seconds: float) -> int:
        """How many of those that wait will be done by then, by what others took. Callers hold the lock."""
        if not self._seconds:
            return 0
        turns = int(seconds / self._seconds) - 1  # the running jobs come first
        return max(0, turns) * max(1, self.slots or self._limits.running)

    def wake(self) -> None:
        """Makes the engine look at its jobs again. For any thread."""
        self._something.set()

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which tickets come after others. To be called again and again. For any thread."""
        with self._lock:
            self._waiting.hold_back(held_back)
            has_news = self._are_late = len(self._waiting) > 0
        if has_news:
            self._something.set()

    def reserve(self, client: Hashable = None) -> Place:
        """Takes a place in the queue for a client's request, before anything is done for it. Raises RequestError.

        Where none is free, the newest job gives way of a client that is held back, as if it came now.
        """
        with self._lock:
            if self._stopping or self._is_draining:
                raise self._refusal()
            waiting = len(self._waiting) + self._places
            out = None
            if waiting >= self._limits.waiting:
                out = self._waiting.newest_held_back(client)
                if out is None:
                    raise queue_full(waiting)
                self._waiting.remove(out)
            self._places += 1
        if out is not None:
            self._close(out, queue_full(waiting))
        return Place(self, client)

    def submit(
        self, job: Request, outbox: OutputQueue, deadline: float | None = None, place: Place | None = None
    ) -> RequestState:
        """Queues a job, in a place reserved for it or a new one; its events come to `outbox`. Raises RequestError."""
        place = place or self.reserve()
        ticket = RequestState(job, outbox, deadline)
        with self._lock:
            if self._stopping or self._is_draining:
                raise self._refusal()
            self._tickets.add(ticket)
            self._waiting.add(ticket, place.client, job.size)
        place.leave()
        self._something.set()
        return ticket

    def _refusal(self) -> RequestError:
        return broken() if self._has_failed else stopped()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.inference_mode():
            try:
                self._make_batch()
            except Exception as error:  # such as a compiler's
                self._hindrance = error
                return
            finally:
                self._ready.set()
            faults = 0  # in a row, while it begins again
            failures = 0  # in a row, of its work
            is_sound = True
            while not self._stopping:
                try:
                    if not is_sound:
                        # One that waits may be what makes the work fail, each time that it is looked at.
                        self._start_anew(are_all_suspect=failures >= _ATTEMPTS)
                    is_sound, faults = True, 0
                    self._work()
                    failures = 0
                # Not a request's fault, but ours: those that wait must not wait for ever.
                except Exception:  # noqa: PERF203
                    log.exception("the engine of %s failed", self.loaded.name)
                    faults += not is_sound
                    failures += is_sound
                    is_sound = False
                    if faults >= _ATTEMPTS:
                        return
                    time.sleep(0.1 * faults)  # memory may come back

    def _work(self) -> None:
        """Does what is to be done now, or waits until there is something."""
        self._something.clear()
        self._give_back(time.monotonic())
        self._gather()
        self._admit()
        self._announce(time.monotonic())
        # Anything that happens from here on sets the event again, so nothing is missed by waiting.
        if not self._round():
            self._something.wait(self._patience())

    def _give_back(self, now: float) -> None:
        """Gives memory back some time after nothing is held for slow readers any more."""
        if self._parked or any(ticket.whole_bytes for ticket in self._running):
            self._held_at = now
        elif self._held_at is not None and now - self._held_at > _GIVE_BACK:
            self._held_at = None
            give_back()

    def _make_batch(self) -> None:
        if self.loaded.backend is not None:
            self._batch = ModelRunner(self.loaded, self.loaded.backend, self.slots)

    def _start_anew(self, *, are_all_suspect: bool) -> None:
        """Ends all jobs that have begun with INTERNAL: their state is unknown. `are_all_suspect`: waiting jobs too."""
        with self._lock:
            if are_all_suspect:
                self._waiting.clear()
            ended = self._tickets.difference(self._waiting)
        for ticket in ended:
            self._close(ticket, internal())
        for tickets in (self._running, self._parked, self._joining):
            tickets.clear()
        self._batch = None  # its memory first
        self._make_batch()

    def _watch_over(self) -> None:
        """Waits for the end of the thread, and ends with it whatever it has left, for whatever reason it ended."""
        self._thread.join()
        with self._lock:
            self._has_failed = not self._stopping
            self._stopping = True
            left = list(self._tickets)
            self._waiting.clear()
        for ticket in left:
            try:
                self._close(ticket, self._refusal())
            except Exception:  # noqa: PERF203  # the others end all the same
                log.exception("request %s was not told that the engine has ended", ticket.job.request_id)
        self._ready.set()
        if self._has_failed and self._hindrance is None:
            log.critical("the engine of %s has ended: no more requests are served", self.loaded.name)
            self._on_failure()

    def _gather(self) -> None:
        """Lets a burst come in, where nobody is worked on who would wait: sources are read together."""
        if self._waiting and not self._running and not self._parked and self.loaded.is_encoder_decoder:
            self._bursts.gather(lambda: len(self._waiting), self._are_enough)

    def _are_enough(self) -> bool:
        """Whether others would not be read together with those who wait."""
        backend = self.loaded.backend
        with self._lock:
            tokens = [len(ticket.job.source.tokens) for ticket in self._waiting]
        return len(tokens) >= self.slots or (backend is not None and sum(tokens) >= backend.max_prefill_tokens)

    def _admit(self) -> None:
        """Lets waiting jobs in, by the queue's order, and drops those that have lost their reader or their time.

        A job whose reader is slow makes room for those that wait. It came before them, and goes on before them. Jobs
        that are held back come in one at a time, and only as the others' steps leave time for it.
        """
        self._drop_those_over(time.monotonic())
        for ticket in [ticket for ticket in self._parked if not ticket.outbox.full]:
            if ticket not in self._parked:  # it has read nothing since, and was given up
                continue
            place = self._parked.index(ticket)
            self._parked.remove(ticket)  # it need not be counted beside the one who makes room for it
            if not self._make_room(is_joining=ticket.seat is not None):
                self._parked.insert(place, ticket)
                break
            if ticket.seat is not None:
                assert self._batch is not None
                self._batch.unpark(ticket.seat)
            self._running.append(ticket)
        is_held_back = False
        has_time = not self._has_put_off and (self._owed <= 0 or not self._can_any_step())
        while not is_held_back and (ticket := self._peek(has_time=has_time)) is not None:
            is_joining = self._batch is not None and isinstance(ticket.job.target, DecodingParams)
            whole = ticket.job.whole_bytes
            if not self._make_room(is_joining=is_joining, taken=len(self._joining)) or not self._make_memory(whole):
                break
            with self._lock:
                # It may have been refused meanwhile, or another may go before it now.
                if self._next_waiting(has_time=has_time) is not ticket:
                    continue
                is_held_back = self._waiting.is_held_back(ticket)
                self._waiting.begin(ticket)
            ticket.started = time.monotonic()
            ticket.whole_bytes = whole
            if is_joining:
                self._joining.append(ticket)
            else:
                ticket.taken = int(ticket.is_announced)
                ticket.events = itertools.islice(attribute(self.loaded, ticket.job), ticket.taken, None)
                self._running.append(ticket)
        if self._joining:
            began = time.monotonic()
            self._join()
            if is_held_back:
                self._owed += time.monotonic() - began

    def _peek(self, *, has_time: bool) -> RequestState | None:
        with self._lock:
            return self._next_waiting(has_time=has_time)

    def _next_waiting(self, *, has_time: bool) -> RequestState | None:
        """The ticket to begin next; `has_time` for one that is held back. Callers hold the lock."""
        begun = itertools.chain(self._running, self._joining)
        is_idle = all(ticket.outbox.full or self._waiting.has_stalled(ticket) for ticket in begun)
        return self._waiting.next(is_idle=is_idle, has_time=has_time)

    def _announce(self, now: float) -> None:
        """Puts the first event of tickets that have waited for a while, to learn before any work whose readers take it.

        A ticket that does not wait gets its first event with the next one, which costs the others less. Takes a moment
        at most; the rest of the tickets follow behind the next step.
        """
        if not self._are_late:
            return
        with self._lock:
            self._are_late = False
            late = [ticket for ticket in self._waiting if not ticket.is_announced and now - ticket.arrived > _SLOW]
        announced: list[OutputQueue] = []
        for ticket in late:
            if time.monotonic() - now > _MOMENT:
                self._are_late = True
                self._something.set()
                break
            try:
                _, started = begin(self.loaded, ticket.job)
            except Exception:  # the job fails with the same error when its turn comes
                continue
            ticket.is_announced = True
            ticket.outbox.put(started, ring=False)
            announced.append(ticket.outbox)
        ring(announced)

    def _drop_those_over(self, now: float) -> None:
        with self._lock:
            over = [ticket for ticket in self._waiting if _is_over(ticket, now)]
            for ticket in over:
                self._waiting.remove(ticket)
        for ticket in over:
            self._close(ticket, expired())
        for ticket in [ticket for ticket in self._parked if _is_over(ticket, now)]:
            self._end(self._parked, ticket, expired())

    def _make_room(self, *, is_joining: bool, taken: int = 0) -> bool:
        """Whether one more job can be worked on, in the batch or alone; one whose reader is slow gives way.

        `pop_hidden` are places in the batch that are as good as taken.
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
        return slow is not None and self._park(slow)

    def _make_memory(self, needed: int) -> bool:
        """Whether so many bytes of attention can be made at once; what slow readers have not read gives way."""
        if not needed:
            return True
        holding = [ticket for ticket in [*self._running, *self._parked, *self._joining] if ticket.whole_bytes]
        held = sum(ticket.whole_bytes for ticket in holding)
        now = time.monotonic()
        for ticket in holding:
            if held + needed <= _WHOLE_BYTES:
                break
            can_be_made_again = ticket.seat is not None or isinstance(ticket.job.target, GivenTarget)
            if can_be_made_again and self._is_slow(ticket, now):
                held -= ticket.whole_bytes
                ticket.events, ticket.whole_bytes, ticket.is_dropped, ticket.is_made = None, 0, True, False
        return not held or held + needed <= _WHOLE_BYTES

    def _is_slow(self, ticket: RequestState, now: float, seconds: float = _SLOW) -> bool:
        """Whether a reader has taken nothing for so many seconds, in which its outbox was full."""
        since = ticket.outbox.full_since
        return since is not None and now - since > seconds

    def _join(self) -> None:
        assert self._batch is not None
        self._bursts.begun([ticket.arrived for ticket in self._joining], was_idle=not self._running)
        seats = self._batch.join([ticket.job for ticket in self._joining])
        tickets, self._joining = self._joining, []
        self._running.extend(tickets)
        told: list[OutputQueue] = []
        for ticket, seat in zip(tickets, seats, strict=True):
            if isinstance(seat, Seat):
                ticket.seat = seat
                news, seat.news = iter(seat.news), ()
                started = next(news)
                if not ticket.is_announced:
                    ticket.outbox.put(started, ring=False)
                # Who steps next is told of that as well: to send the one would hold up the other, by a third of it.
                if seat.reads or ticket.whole_bytes:
                    told.append(ticket.outbox)
                if ticket.whole_bytes:
                    ticket.events = news
            else:
                self._fail(ticket, seat)
        ring(told)

    def _round(self) -> bool:
        """Takes one step of each job that can, of those outside the batch as time allows. Returns whether any could."""
        worked = self._has_put_off = False
        # Where the batch has nothing to do, a waiting job may begin before the next long piece of work.
        most = 0.0 if self._can_any_step() else _TURN
        outside: list[RequestState] = []
        for ticket in list(self._running):
            if _is_over(ticket, time.monotonic()):
                worked = True  # its place is free: somebody who waits may come in
                self._finish(ticket, expired())
            elif ticket.seat is None or ticket.whole_bytes or ticket.is_dropped:
                outside.append(ticket)
        for ticket in outside:
            if self._stopping:
                return True
            if ticket.outbox.full:
                continue
            if self._owed > most and not ticket.is_made:
                self._has_put_off = worked = True
                continue
            began = time.monotonic()
            worked = self._advance(ticket) or worked
            while ticket.is_made and ticket.events and not ticket.outbox.full and time.monotonic() - began < _MOMENT:
                self._advance(ticket)
            self._owed += time.monotonic() - began
            if ticket in self._running:  # behind the others, whose turn is next
                self._running.remove(ticket)
                self._running.append(ticket)
        began = time.monotonic()
        has_stepped = self._step()
        seconds = time.monotonic() - began
        self._owed = max(self._owed - seconds, -seconds) if has_stepped else 0.0
        return has_stepped or worked

    def _can_any_step(self) -> bool:
        return any(self._can_step(ticket) for ticket in self._running)

    def _can_step(self, ticket: RequestState) -> bool:
        """Whether a job has a step of the batch to take."""
        return ticket.seat is not None and not (ticket.whole_bytes or ticket.is_dropped or ticket.outbox.full)

    def _step(self) -> bool:
        """Takes one step of the batch. Returns whether anybody in it could."""
        ready = {ticket.seat: ticket for ticket in self._running if ticket.seat is not None and self._can_step(ticket)}
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
        told_to: list[OutputQueue] = []
        ended: list[RequestState] = []
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
        """Takes jobs out of the batch whose readers have been slow for a while: in their slots they slow each step.

        Where too many are parked already, a job goes on in its slot for a few seconds. Then it is parked, and the job
        that was parked first is given up.
        """
        for ticket in [ticket for ticket in self._running if ticket.seat is not None]:
            if self._is_slow(ticket, now) and (self._may_park(ticket) or self._is_slow(ticket, now, _LONG_SLOW)):
                self._park(ticket)

    def _park(self, ticket: RequestState) -> bool:
        """Makes a job wait whose reader is slow, without a place. Returns whether that could be done.

        Where there are too many, those are given up that have waited longest and are slow; the job itself as the last.
        """
        now = time.monotonic()
        while not self._may_park(ticket):
            first = next((other for other in self._parked if self._is_slow(other, now)), None)
            if first is None:
                is_slow = self._is_slow(ticket, now)
                if is_slow:
                    self._end(self._running, ticket, stalled())
                return is_slow
            self._end(self._parked, first, stalled())
        if ticket.seat is not None:
            assert self._batch is not None
            self._batch.park(ticket.seat)
        self._running.remove(ticket)
        self._parked.append(ticket)
        return True

    def _may_park(self, ticket: RequestState) -> bool:
        """Whether one more may wait without a place: by their number, and by the bytes of their caches."""
        if len(self._parked) >= self._most_parked:
            return False
        held = sum(map(self._cache_bytes, self._parked))
        if ticket.seat is None or not held:
            return True
        backend = self.loaded.backend
        bound = max(_PARKED_BYTES, _PARKED_SLOTS * (0 if backend is None else backend.bytes_per_slot))
        return held < bound and held + self._cache_bytes(ticket) <= bound

    def _cache_bytes(self, ticket: RequestState) -> int:
        """The bytes of a job's cache, counted once while the job waits for its reader: hundreds wait at each step."""
        if ticket.seat is None:
            return 0
        since = ticket.outbox.full_since
        if ticket.cache_bytes is None or ticket.cache_bytes[0] != since:
            assert self._batch is not None
            ticket.cache_bytes = since, self._batch.bytes_of(ticket.seat)
        return ticket.cache_bytes[1]

    def _advance(self, ticket: RequestState) -> bool:
        """Puts the next of a job's events. Returns whether that could be done."""
        try:
            if ticket.is_dropped and not self._make_events_again(ticket):
                return False
            assert ticket.events is not None
            event = next(ticket.events, None)
        except Exception as error:  # one request's fault must not end the others
            self._fail(ticket, error)
            return True
        if event is not None:
            ticket.taken += 1
            if isinstance(event, Step) and isinstance(ticket.job.target, GivenTarget):
                ticket.is_made = True
            elif isinstance(event, Step):
                ticket.whole_bytes = 0  # what comes step by step holds nothing more
            ticket.outbox.put(event)
        elif ticket.seat is None:
            self._finish(ticket, None)
        else:  # what comes before its steps has been put
            ticket.events, ticket.whole_bytes = None, 0
        return True

    def _make_events_again(self, ticket: RequestState) -> bool:
        """Makes what was dropped for want of memory, if there is memory. Returns whether there is."""
        whole = ticket.job.whole_bytes
        if not self._make_memory(whole):
            return False
        if ticket.seat is None:
            events = attribute(self.loaded, ticket.job)
        else:
            assert self._batch is not None
            events = self._batch.parts_again(ticket.job)
        ticket.events = itertools.islice(events, ticket.taken, None)
        ticket.whole_bytes, ticket.is_dropped = whole, False
        return True

    def _fail(self, ticket: RequestState, error: Exception) -> None:
        if is_out_of_memory(error):
            error = out_of_memory()
        elif not isinstance(error, RequestError):
            log.error("request %s failed", ticket.job.request_id, exc_info=error)
            error = internal()
        self._finish(ticket, error)

    def _finish(self, ticket: RequestState, error: RequestError | None) -> None:
        self._end(self._running, ticket, error)
        if error is None and ticket.started is not None:
            seconds = time.monotonic() - ticket.started
            self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds

    def _end(self, among: list[RequestState], ticket: RequestState, error: RequestError | None) -> None:
        """Ends a job that has begun. What goes wrong on the way is the engine's fault, which ends this job as well."""
        ticket.events = None  # and with it the cache
        if ticket.seat is not None:
            assert self._batch is not None
            self._batch.leave(ticket.seat)
            ticket.seat = None
        among.remove(ticket)
        self._close(ticket, error)

    def _close(self, ticket: RequestState, error: RequestError | None) -> None:
        """Ends a job's outbox: the last that is done for it. For any thread."""
        ticket.outbox.end(error)
        with self._lock:
            self._tickets.discard(ticket)

    def _patience(self) -> float:
        """Seconds until the first deadline, or until a reader that others wait for is slow."""
        begun = [*self._running, *self._parked]
        with self._lock:
            deadlines = [t.deadline for t in [*begun, *self._waiting] if t.deadline is not None]
            are_waiting = bool(self._waiting)
        longest = _LONGEST_SLEEP if self._held_at is None else _GIVE_BACK
        wants_place = any(not ticket.outbox.full for ticket in self._parked)
        if are_waiting or wants_place or any(ticket.is_dropped for ticket in begun):
            longest = _SLOW
        return min(max(0.0, min(deadlines) - time.monotonic()), longest) if deadlines else longest


class Place:
    """A place in an engine's queue, until a job takes it or it is left; a context at whose end it is left."""

    def __init__(self, engine: Engine, client: Hashable = None) -> None:
        self.client = client
        self._engine: Engine | None = engine

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Gives the place back, once."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with engine._lock:
                engine._places -= 1


def _is_over(ticket: RequestState, now: float) -> bool:
    return ticket.outbox.abandoned or (ticket.deadline is not None and now >= ticket.deadline)
