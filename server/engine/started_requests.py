"""The requests that the engine has started, by status, and the runner that they run on."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator

from ..errors import OUT_OF_MEMORY, RequestError, report_fault
from ..memory import release_memory_of
from ..operations import ModelLoad, as_current
from ..runner import Runner
from .admission import AdmissionQueue
from .request_state import RequestState, RequestStatus

log = logging.getLogger(__name__)


class StartedRequests:
    """The started requests of one engine, and how they end. For the engine's thread."""

    def __init__(self, admission: AdmissionQueue, runner: Runner, max_given: int, *, has_slots: bool) -> None:
        """`max_given` bounds the requests with given targets, which take no slot of the runner.

        Without slots, it bounds all running requests together.
        """
        self.has_slots = has_slots
        self.runner = runner
        self.starting: list[RequestState] = []  # about to get a sequence
        self.running: list[RequestState] = []  # in the order of their turns
        self.preempted: list[RequestState] = []  # in the order of their preemption
        self._admission = admission
        self._max_given = max_given

    def __iter__(self) -> Iterator[RequestState]:
        return itertools.chain(self.running, self.preempted, self.starting)

    def add_load(self, load: ModelLoad) -> ModelLoad:
        """Returns a load with the numbers of the started requests. For any thread."""
        return dataclasses.replace(
            load,
            num_running=len(self.running) + len(self.starting),
            num_preempted=len(self.preempted),
            num_used_slots=load.num_slots - self.runner.num_free_slots,
        )

    @property
    def can_any_decode(self) -> bool:
        """Whether any request can take a decode step."""
        return any(state.can_decode for state in self.running)

    def has_room(self, num_sequences: int) -> bool:
        """Whether one more request can run: of so many sequences, or with a given target, which has none."""
        if not self.has_slots:
            begun = (max(1, state.request.num_sequences) for state in (*self.running, *self.starting))
            return sum(begun) + max(1, num_sequences) <= self._max_given
        if num_sequences:
            starting = sum(state.request.num_sequences for state in self.starting)
            return self.runner.num_free_slots >= starting + num_sequences
        return sum(state.has_given_target for state in self.running) < self._max_given

    def run_starting(self) -> None:
        """Lets the starting requests run."""
        for state in self.starting:
            state.status = RequestStatus.RUNNING
        self.running.extend(self.starting)
        self.starting = []

    def rotate(self, state: RequestState) -> None:
        """Puts a request that has had its turn behind the others, if it has not ended."""
        if state.status is RequestStatus.RUNNING:
            self.running.remove(state)
            self.running.append(state)

    def preempt(self, state: RequestState) -> None:
        """Takes a running request out of its slots, until its reader reads on. Where that fails, the request ends."""
        try:
            if state.sequence is not None:
                self.runner.preempt(state.sequence)
        except Exception as error:  # such as too little memory for its cache
            self.fail(state, error)
            return
        self.running.remove(state)
        self.preempted.append(state)
        state.status = RequestStatus.PREEMPTED

    def drop(self, state: RequestState) -> None:
        """Frees the sequence of a follow stream, which gets another one with its next event."""
        assert state.follow is not None
        state.follow.forget_sequence()
        state.target_pass = None
        self.remove_sequence(state)
        if state.status is RequestStatus.RUNNING:
            self.running.remove(state)
            self.preempted.append(state)
            state.status = RequestStatus.PREEMPTED

    def resume(self, state: RequestState) -> None:
        """Lets a preempted request run again. There must be room. Where that fails, the request ends."""
        if state.follow is not None and state.sequence is None:
            self.preempted.remove(state)
            self.starting.append(state)
            state.status = RequestStatus.STARTING
            return
        try:
            if state.sequence is not None:
                self.runner.resume(state.sequence)
        except Exception as error:
            self.fail(state, error)
            return
        self.preempted.remove(state)
        self.running.append(state)
        state.status = RequestStatus.RUNNING

    def remove_sequence(self, state: RequestState) -> None:
        """Frees the sequence of a request, if it has one."""
        if state.sequence is not None:
            sequence, state.sequence = state.sequence, None
            self.runner.remove(sequence)

    def finish(self, state: RequestState, error: RequestError | None) -> None:
        """Ends a request that runs or is preempted. A fault on the way is the engine's, and ends this request too."""
        state.pending_outputs = None
        self.remove_sequence(state)
        (self.preempted if state.status is RequestStatus.PREEMPTED else self.running).remove(state)
        self._admission.close(state, error)

    def fail(self, state: RequestState, error: Exception) -> None:
        """Ends a request with what went wrong, in words for its client."""
        error = release_memory_of(error)
        request_id = state.request.request_id
        with as_current(state.call):
            if not isinstance(error, RequestError):
                error = report_fault(log, request_id, error)
            elif error.reason == OUT_OF_MEMORY:
                words = "request %s ends, as there is too little memory for it now"
                log.warning(words, request_id, extra={"request_id": request_id})
        self.finish(state, error)
