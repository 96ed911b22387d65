"""Targets that wait for their passes: several of them are read in one pass, beside the decode steps of others.

These are given targets, and what follow streams have to catch up on.
"""

from __future__ import annotations

import time

from ..runner import TargetPass
from .preemption import Preemption
from .request_state import RequestState
from .started_requests import StartedRequests
from .time_share import TimeShare

# Seconds that a batch takes at most, about, where a decode step of other requests waits for its end.
_BATCH_SECONDS = 0.03

# The fewest tokens of a batch, however long they take.
_MIN_TOKENS = 64

# The weight of one batch in the average time of a token.
_AVERAGE_WEIGHT = 0.2


class GivenTargets:
    """Puts batches together from the targets that wait. For the engine's thread."""

    def __init__(self, requests: StartedRequests, preemption: Preemption, time_share: TimeShare) -> None:
        self._requests = requests
        self._preemption = preemption
        self._time_share = time_share
        self._token_seconds = 0.0  # of late; 0 before the first batch

    def read(self, *, can_decode: bool) -> list[RequestState]:
        """Runs a batch of the targets that wait, as far as time allows. `can_decode`: whether decode steps wait.

        Returns the follow streams whose passes have run.
        """
        if not any(state.waits_for_batch for state in self._requests.running):
            return []
        followed: list[RequestState] = []
        if self._time_share.may_work(can_decode=can_decode):
            began = time.monotonic()
            waiting = self._passes()
            if waiting:
                read = self._requests.runner.read_targets([*waiting], self._max_tokens(can_decode=can_decode))
                for target_pass in read:
                    state = waiting[target_pass]
                    if state.follow is None:
                        state.is_pending_computed = True
                    else:
                        followed.append(state)
                self._count(sum(target_pass.num_tokens for target_pass in read), time.monotonic() - began)
            self._time_share.add_work(time.monotonic() - began)
        streams = (state for state in self._requests.running if state.follow is not None and state not in followed)
        if any(state.waits_for_batch and not state.is_blocked for state in streams):
            self._time_share.has_put_off = True
        return followed

    def _passes(self) -> dict[TargetPass, RequestState]:
        """The passes that may run now. The pass of a given target needs memory for its attention."""
        waiting: dict[TargetPass, RequestState] = {}
        for state in self._requests.running:
            if not state.waits_for_batch or state.is_blocked:
                continue
            if state.target_pass is None:
                state.target_pass = self._requests.runner.target_pass(state.request)
            is_ready = state.follow is not None or (
                state.target_pass.can_share and self._preemption.make_memory_again(state)
            )
            if is_ready:
                waiting[state.target_pass] = state
        return waiting

    def _max_tokens(self, *, can_decode: bool) -> int:
        """The most tokens of the next batch."""
        most = self._requests.runner.max_given_tokens
        if not can_decode or not self._token_seconds:
            return most
        return min(most, max(_MIN_TOKENS, int(_BATCH_SECONDS / self._token_seconds)))

    def _count(self, num_tokens: int, seconds: float) -> None:
        """Takes note of a batch."""
        if num_tokens:
            before = self._token_seconds or seconds / num_tokens
            self._token_seconds = before + (seconds / num_tokens - before) * _AVERAGE_WEIGHT
