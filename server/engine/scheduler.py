"""Which requests run: starts waiting ones, resumes preempted ones, ends expired ones.

Waiting requests start in the order of the waiting queue. A request whose reader is slow gives its slot to a waiting
one, and goes on before the waiting ones. Requests that are held back start one at a time, and only as the decode steps
of others leave time for it.
"""

from __future__ import annotations

import itertools
import time

from ..errors import expired
from ..models import LoadedModel
from .admission import AdmissionQueue
from .batching_delay import BatchingDelay
from .output_queue import OutputQueue, notify
from .outputs import make_started
from .preemption import Preemption
from .request_state import SLOW_SECONDS, RequestState, RequestStatus
from .started_requests import StartedRequests
from .time_share import TimeShare

# Seconds that the engine sleeps at most: a deadline may lie further away than a wait can be long.
_LONGEST_SLEEP = 60.0

# Seconds for which first outputs are put between two decode steps.
_ANNOUNCE_SECONDS = 0.002


class Scheduler:
    """Decides what one engine works on. For the engine's thread."""

    def __init__(
        self,
        loaded: LoadedModel,
        admission: AdmissionQueue,
        requests: StartedRequests,
        preemption: Preemption,
        time_share: TimeShare,
    ) -> None:
        self._loaded = loaded
        self._admission = admission
        self._requests = requests
        self._preemption = preemption
        self._time_share = time_share
        self._batching_delay = BatchingDelay()

    def wait_for_burst(self, num_slots: int) -> None:
        """Lets a burst of requests arrive where no other request would wait: their sources are read together."""
        requests = self._requests
        is_idle = not requests.running and not requests.preempted
        reads_together = requests.has_slots and self._loaded.is_encoder_decoder
        if len(self._admission) and is_idle and reads_together:
            self._batching_delay.wait(lambda: len(self._admission), lambda: self._fills_batch(num_slots))

    def _fills_batch(self, num_slots: int) -> bool:
        """Whether the source of another request would not be read together with the waiting ones."""
        lengths, backend = self._admission.source_lengths(), self._loaded.backend
        return len(lengths) >= num_slots or (backend is not None and sum(lengths) >= backend.max_prefill_tokens)

    def schedule(self) -> bool:
        """Moves requests between waiting, running and preempted, and ends expired ones.

        Returns whether a request that starts was held back. Requests that get a sequence are in `starting` then.
        """
        self._end_expired(time.monotonic())
        has_resumed = self._preemption.resume_ready()
        has_time = not self._time_share.has_put_off and (
            self._time_share.is_balanced or not self._requests.can_any_decode
        )
        is_held_back: bool | None = False
        # Without slots, sources are read one by one: between two of them, the engine looks at all requests.
        while not is_held_back and len(self._requests.starting) < self._requests.runner.max_batch_size:
            state = self._admission.next(is_idle=self._is_idle, has_time=has_time)
            if state is None:
                break
            num_bytes = state.request.single_pass_bytes
            # The first request waits for all the slots that it needs, and the requests behind it wait for it: so each
            # gets its turn, whatever it needs.
            has_room = (has_resumed or state.has_given_target) and self._preemption.make_room(
                state.request.num_sequences
            )
            if not has_room or not self._preemption.make_memory(num_bytes):
                break
            # Another request may come before it now, or it may have been refused meanwhile: then look again.
            is_held_back = self._admission.begin(state, is_idle=self._is_idle, has_time=has_time)
            if is_held_back is not None:
                self._begin(state, num_bytes)
        return bool(is_held_back)

    def _begin(self, state: RequestState, num_bytes: int) -> None:
        state.start_time = time.monotonic()
        state.attention_bytes = num_bytes
        state.num_pending_put = int(state.is_announced)
        if state.has_given_target:
            state.status = RequestStatus.RUNNING
            self._requests.running.append(state)
        else:
            state.status = RequestStatus.STARTING
            self._requests.starting.append(state)

    @property
    def _is_idle(self) -> bool:
        """Whether nothing is worked on for a reader that reads."""
        begun = itertools.chain(self._requests.running, self._requests.starting)
        return all(state.is_blocked or self._admission.has_stalled(state) for state in begun)

    def record_starts(self, states: list[RequestState]) -> None:
        """Takes note of requests that start together."""
        was_idle = not self._requests.running
        arrival_times = [state.arrival_time for state in states if state.follow is None]
        if arrival_times:
            self._batching_delay.record(arrival_times, was_idle=was_idle)

    def announce(self, now: float) -> bool:
        """Puts the first output of requests that have waited for a while: it shows whose readers take outputs.

        A request that does not wait gets its first output together with the next one, which costs other requests less.
        Takes a moment at most. Returns whether requests are left for another time.
        """
        announced: list[OutputQueue] = []
        is_cut_short = False
        for state in self._admission.late_requests(now, SLOW_SECONDS):
            if time.monotonic() - now > _ANNOUNCE_SECONDS:
                is_cut_short = True
                self._admission.announce_later()
                break
            try:
                _, started = make_started(self._loaded, state.request)
            except Exception:  # the request fails with the same error when its turn comes
                continue
            state.is_announced = True
            state.queue.put(started, notifies=False)
            announced.append(state.queue)
        notify(announced)
        return is_cut_short

    def _end_expired(self, now: float) -> None:
        """Ends waiting and preempted requests that are cancelled or past their deadline."""
        for state in self._admission.pop_expired(now):
            self._admission.close(state, expired())
        for state in [state for state in self._requests.preempted if state.is_expired(now)]:
            self._requests.finish(state, expired())

    def end_expired_running(self) -> bool:
        """Ends running requests that are cancelled or past their deadline. Returns whether there were any."""
        now = time.monotonic()
        ended = [state for state in self._requests.running if state.is_expired(now)]
        for state in ended:
            self._requests.finish(state, expired())
        return bool(ended)

    @property
    def patience(self) -> float:
        """Seconds until the next deadline, or until a reader that others wait for counts as slow."""
        deadlines = self._admission.deadlines()
        deadlines += [state.deadline for state in self._requests if state.deadline is not None]
        longest = self._preemption.longest_wait
        if len(self._admission):
            longest = SLOW_SECONDS
        longest = _LONGEST_SLEEP if longest is None else longest
        return min(max(0.0, min(deadlines) - time.monotonic()), longest) if deadlines else longest
