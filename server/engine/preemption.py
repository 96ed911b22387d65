"""Which requests give way to others because their clients are slow: their slots, and the attention held for them.

A preempted request keeps its cache, outside the slots. The caches of all preempted requests are bounded by number and
by bytes; beyond the bounds, the request that has been slow longest ends with ABORTED. A follow stream loses its cache
instead, which is computed again when the stream goes on.
"""

from __future__ import annotations

import time

from ..errors import stalled
from ..memory import give_back
from .request_state import SLOW_SECONDS, RequestState, RequestStatus
from .started_requests import StartedRequests

# Seconds for which a slow reader keeps its slot where too many requests are preempted already, at the cost of time at
# each step of the other requests.
_LONG_SLOW_SECONDS = 5.25

# Seconds without an event after which a follow stream gives up its slot, and after which it gives up its cache.
_IDLE_SECONDS, _LONG_IDLE_SECONDS = 1.0, 30.0

# Bytes of attention computed at once that are held for all readers together. Beyond it, the attention of slow readers
# is dropped, and computed again when they read on.
_ATTENTION_BYTES = 128 * 1024**2

# Bytes of the caches of all preempted requests together; or this number of whole slots where these take more.
_CACHE_BYTES, _CACHE_SLOTS = 128 * 1024**2, 4

# Seconds after which memory that was held for slow readers goes back to the system.
_GIVE_BACK_SECONDS = 5.0


class Preemption:
    """Makes room among the started requests. For the engine's thread."""

    def __init__(self, requests: StartedRequests, max_preempted: int, slot_bytes: int) -> None:
        """`max_preempted` bounds the preempted requests; `slot_bytes` is what a whole slot takes."""
        self._requests = requests
        self._max_preempted = max_preempted
        self._max_cache_bytes = max(_CACHE_BYTES, _CACHE_SLOTS * slot_bytes)
        self._held_at: float | None = None  # when memory was last held for slow readers

    # ---- slots ------------------------------------------------------------------------------------------------------

    def resume_ready(self) -> bool:
        """Lets preempted requests whose readers read on run again, as far as there is room.

        Returns whether there was room for all. Where there was not, the slots that are free are for them: one that
        needs several would else wait for ever behind new requests that need one.
        """
        requests = self._requests
        for state in [state for state in requests.preempted if not state.is_blocked]:
            if state.status is not RequestStatus.PREEMPTED:  # its reader has stopped since, and it was given up
                continue
            if not self.make_room(state.request.num_sequences, resuming=state):
                return False
            requests.resume(state)
        return True

    def make_room(self, num_sequences: int, resuming: RequestState | None = None) -> bool:
        """Whether one more request can run. Requests of the same kind whose readers are slow give way.

        `num_sequences` is 0 for a request with a given target. `resuming` is a preempted request that is about to run:
        its cache leaves the preempted ones, and does not count.
        """
        requests, is_given = self._requests, not num_sequences
        while not requests.has_room(num_sequences):
            peers = (
                state for state in requests.running if not requests.has_slots or state.has_given_target == is_given
            )
            blocked = next((state for state in peers if state.is_blocked), None)
            if blocked is None or not self._preempt(blocked, resuming):
                return False
        return True

    def give_up_slots(self, state: RequestState) -> None:
        """Lets a running request go on without a sequence, with a given target: at once, or when there is room."""
        requests = self._requests
        requests.remove_sequence(state)
        if requests.has_slots and not requests.has_room(0):
            requests.preempt(state)

    def preempt_slow(self, now: float) -> None:
        """Takes requests out of their slots whose readers have been slow for a while: they slow each step.

        Where too many requests are preempted already, a slow request keeps its slot for a few seconds. Then it is
        preempted, and the request that was preempted first is given up. Without slots, a slow request slows no step.
        """
        if not self._requests.has_slots:
            return
        for state in [state for state in self._requests.running if state.sequence is not None]:
            if state.is_idle and not state.is_slow(now, _IDLE_SECONDS):
                continue
            if state.is_slow(now) and (self._may_preempt(state) or state.is_slow(now, _LONG_SLOW_SECONDS)):
                self._preempt(state)

    def _preempt(self, state: RequestState, resuming: RequestState | None = None) -> bool:
        """Preempts a running request. Returns whether it runs no more.

        Where too many requests are preempted, the slow ones that have waited longest are given up; the request itself
        as the last.
        """
        now, requests = time.monotonic(), self._requests
        while not self._may_preempt(state, resuming):
            others = (other for other in requests.preempted if other is not resuming)
            followed = next((other for other in (*others, state) if _can_drop(other)), None)
            if followed is not None:
                requests.drop(followed)
                if followed is state:
                    return True
                continue
            slow = next((other for other in requests.preempted if other.follow is None and other.is_slow(now)), None)
            if slow is None:
                is_slow = state.is_slow(now)
                if is_slow:
                    requests.finish(state, stalled())
                return is_slow
            requests.finish(slow, stalled())
        requests.preempt(state)
        return True

    def _may_preempt(self, state: RequestState, resuming: RequestState | None = None) -> bool:
        """Whether one more request may be preempted: by the number of them, and by the bytes of their caches."""
        preempted = [other for other in self._requests.preempted if other is not resuming and not _is_dropped(other)]
        if len(preempted) >= self._max_preempted:
            return False
        held = sum(map(self._cache_bytes, preempted))
        if state.sequence is None or not held:
            return True
        return held < self._max_cache_bytes and held + self._cache_bytes(state) <= self._max_cache_bytes

    def _cache_bytes(self, state: RequestState) -> int:
        """The bytes of a request's cache, counted once while its queue is full: each step asks for hundreds."""
        if state.sequence is None:
            return 0
        since = state.blocked_since
        if state.counted_cache is None or state.counted_cache[0] != since:
            state.counted_cache = since, self._requests.runner.cache_bytes(state.sequence)
        return state.counted_cache[1]

    def drop_idle(self, now: float) -> None:
        """Drops the caches of follow streams whose clients have sent nothing for long."""
        for state in [state for state in self._requests if _can_drop(state)]:
            if state.is_idle and state.is_slow(now, _LONG_IDLE_SECONDS):
                self._requests.drop(state)

    # ---- attention --------------------------------------------------------------------------------------------------

    def make_memory(self, num_bytes: int) -> bool:
        """Whether so many bytes of attention can be computed at once. What slow readers have not read is dropped."""
        if not num_bytes:
            return True
        holders = [state for state in self._requests if state.attention_bytes]
        held = sum(state.attention_bytes for state in holders)
        now = time.monotonic()
        for state in holders:
            if held + num_bytes <= _ATTENTION_BYTES:
                break
            if state.is_slow(now):
                held -= state.attention_bytes
                state.pending_outputs, state.attention_bytes = None, 0
                state.must_recompute, state.is_pending_computed = True, False
        return not held or held + num_bytes <= _ATTENTION_BYTES

    def make_memory_again(self, state: RequestState) -> bool:
        """Whether the attention of a request can be computed, for which memory is made where it was dropped."""
        if state.must_recompute:
            if not self.make_memory(state.request.single_pass_bytes):
                return False
            state.attention_bytes, state.must_recompute = state.request.single_pass_bytes, False
        return True

    def give_back_memory(self, now: float) -> None:
        """Gives memory back to the system some time after nothing is held for slow readers any more."""
        requests = self._requests
        if requests.preempted or any(state.attention_bytes for state in requests.running):
            self._held_at = now
        elif self._held_at is not None and now - self._held_at > _GIVE_BACK_SECONDS:
            self._held_at = None
            give_back()

    @property
    def longest_wait(self) -> float | None:
        """Seconds after which the engine must look again, whatever happens; None where nothing changes by itself."""
        requests = self._requests
        has_ready = any(not state.is_blocked for state in requests.preempted)
        if has_ready or any(state.must_recompute for state in requests):
            return SLOW_SECONDS
        waits = [] if self._held_at is None else [_GIVE_BACK_SECONDS]
        waits += [_LONG_IDLE_SECONDS for state in requests if _can_drop(state)]
        return min(waits, default=None)


def _can_drop(state: RequestState) -> bool:
    """Whether the sequence of a request can be made anew."""
    return state.follow is not None and state.sequence is not None


def _is_dropped(state: RequestState) -> bool:
    """Whether a follow stream has no sequence, and holds nothing."""
    return state.follow is not None and state.sequence is None
