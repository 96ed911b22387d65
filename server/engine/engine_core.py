"""One iteration of the engine: schedule → run → deliver. All of it is the engine's thread's."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator

from ..models import LoadedModel
from ..operations import ModelMetrics, Phase, Watchdog
from ..request import EncoderSelf, EncoderStates, Output, Step
from ..runner import DecodeOutput, Runner, SearchOutput, Sequence
from .admission import AdmissionQueue
from .beam_hypotheses import give_target, hypothesis_outputs
from .follow_streams import FollowStreams
from .given_targets import GivenTargets
from .output_queue import OutputQueue, notify
from .outputs import make_output_builder, make_started, split_encoder_self, target_outputs
from .preemption import Preemption
from .request_state import RequestState, RequestStatus
from .scheduler import Scheduler
from .started_requests import StartedRequests
from .time_share import TimeShare

# Seconds for which outputs that are computed already go to one reader, before the next request's turn.
_DELIVERY_SECONDS = 0.002

# The outputs that a pass of a given target, or of the encoder, gives.
_COMPUTED = (EncoderSelf, EncoderStates, Step)


class _End(enum.Enum):
    """What comes behind the last pending output."""

    END = enum.auto()


_END = _End.END


class EngineCore:
    """The requests that one engine works on, and the runner that it works with. Made anew after a fault."""

    def __init__(
        self,
        loaded: LoadedModel,
        admission: AdmissionQueue,
        runner: Runner,
        num_slots: int,
        max_given: int,
        max_preempted: int,
        watchdog: Watchdog,
        metrics: ModelMetrics,
    ) -> None:
        """`max_given` bounds the running requests with given targets; `max_preempted` those without a slot."""
        self._loaded = loaded
        self._runner = runner
        self._num_slots = num_slots
        self._watchdog = watchdog
        self._metrics = metrics
        self._time_share = TimeShare()
        slot_bytes = 0 if loaded.backend is None else loaded.backend.bytes_per_slot
        self.requests = StartedRequests(admission, runner, max_given, has_slots=loaded.backend is not None)
        self._preemption = Preemption(self.requests, max_preempted, slot_bytes)
        self._scheduler = Scheduler(loaded, admission, self.requests, self._preemption, self._time_share)
        self._follow_streams = FollowStreams(loaded, self.requests)
        self._pending_outputs = _PendingOutputs(
            loaded, self.requests, self._preemption, self._time_share, self._follow_streams, watchdog, metrics
        )

    def schedule(self) -> bool:
        """Starts, resumes and ends requests. Returns whether some work was put off that needs another look."""
        self._watchdog.activity = Phase.SCHEDULING, self.requests.running
        self._preemption.drop_idle(time.monotonic())
        self._preemption.give_back_memory(time.monotonic())
        self._scheduler.wait_for_burst(self._num_slots)
        is_held_back = self._scheduler.schedule()
        if starts := bool(self.requests.starting):
            began = time.monotonic()
            self._start_sequences()
            if is_held_back:
                self._time_share.add_work(time.monotonic() - began)
        # Without slots, requests start one by one.
        return self._scheduler.announce(time.monotonic()) or (starts and not self.requests.has_slots)

    @property
    def patience(self) -> float:
        """Seconds for which the engine may sleep where there is nothing to do."""
        return self._scheduler.patience

    def run(self, is_stopping: Callable[[], bool]) -> bool:
        """Takes one step of each request that can: pending outputs first, as time allows, then a decode step.

        Returns whether anything was done, or put off.
        """
        self._time_share.has_put_off = False
        has_worked = self._scheduler.end_expired_running()
        self._watchdog.activity = Phase.FOLLOWING, self.requests.running
        has_worked = self._follow_streams.advance() or has_worked
        has_worked = self._pending_outputs.put(is_stopping) or has_worked
        began = time.monotonic()
        if has_decoded := not is_stopping() and self._decode():
            self._time_share.add_step(time.monotonic() - began)
        else:
            self._time_share.clear()
        return has_decoded or has_worked

    # ---- starts -----------------------------------------------------------------------------------------------------

    def _start_sequences(self) -> None:
        """Gives the starting requests their sequences, and puts their first outputs."""
        states = self.requests.starting
        self._watchdog.activity = Phase.READING_SOURCES, states
        self._scheduler.record_starts(states)
        added: dict[RequestState, Sequence | Exception] = {}
        for is_resumed in (False, True):
            if group := [state for state in states if state.is_resumed == is_resumed]:
                requests = [state.runner_request for state in group]
                added |= zip(group, self._runner.add(requests, reads_sources=not is_resumed), strict=True)
        self.requests.run_starting()
        ready: list[OutputQueue] = []
        for state in states:
            sequence = added[state]
            if isinstance(sequence, Exception):
                self.requests.fail(state, sequence)
                continue
            state.sequence = sequence
            try:
                if state.follow is not None:
                    self._follow_streams.start(state, state.follow)
                else:
                    _put_started(self._loaded, state, sequence)
            except Exception as error:
                self.requests.fail(state, error)
                continue
            # A task whose next output comes with the next step is woken then: before, it would delay that step.
            if not (self.requests.has_slots and sequence.has_output_next and state.can_decode):
                ready.append(state.queue)
        notify(ready)

    # ---- decode steps -----------------------------------------------------------------------------------------------

    def _decode(self) -> bool:
        """Takes a decode step of the requests that can. Returns whether there were any."""
        ready = {state.sequence: state for state in self.requests.running if state.sequence and state.can_decode}
        # To send a step and to run a pass at the same time takes longer for the step than one after the other.
        if all(state.is_sending for state in ready.values()):
            return False
        self._preemption.preempt_slow(time.monotonic())
        prefilling = next((sequence for sequence in ready if sequence.is_prefilling), None)
        if prefilling is not None:  # a chunk of one long prompt at a time, so that no request waits for all of them
            self._watchdog.activity = Phase.READING_PROMPT, (prefilling,)
            try:
                self._runner.prefill(prefilling)
                ready[prefilling].record_source_read()
                self.requests.rotate(ready[prefilling])  # the next time, the next prompt
            except Exception as error:
                self.requests.fail(ready.pop(prefilling), error)
        decoding = [sequence for sequence in ready if not sequence.is_prefilling]
        batch = decoding[: self._runner.max_batch_size]
        if batch:
            self._watchdog.activity = Phase.DECODING, batch
            outputs = _run_step(self._runner, ready, batch, self._metrics)
            self._watchdog.activity = Phase.DELIVERING, batch
            self._deliver(outputs)
        for sequence in batch if len(batch) < len(decoding) else ():  # the others come first the next time
            self.requests.rotate(ready[sequence])
        return True

    def _deliver(self, outputs: list[tuple[RequestState, DecodeOutput]]) -> None:
        """Puts what a decode step gave into the requests' queues, and ends the requests that are complete."""
        queues: list[OutputQueue] = []
        ended: list[RequestState] = []
        for state, output in outputs:
            builder = state.builder if state.follow is None else state.follow.builder
            assert builder is not None
            if isinstance(output, Exception):
                self.requests.fail(state, output)
                continue
            try:
                if isinstance(output, SearchOutput):  # from here on the best hypothesis is a given target
                    give_target(self._loaded, state, output)
                    self._preemption.give_up_slots(state)
                    continue
                for complete in builder.add_token(output):
                    state.queue.put(complete, notifies=False)
            except Exception as error:  # one request's fault must not end the others
                self.requests.fail(state, error)
                continue
            queues.append(state.queue)
            if builder.is_finished:
                state.queue.end(notifies=False)
                ended.append(state)
        notify(queues)
        # To free slots takes a moment, in which the clients of the ended requests learn of their ends.
        for state in ended:
            self.requests.finish(state, None)


class _PendingOutputs:
    """Puts the outputs that come without a decode step: those of given targets, and encoder self-attention."""

    def __init__(
        self,
        loaded: LoadedModel,
        requests: StartedRequests,
        preemption: Preemption,
        time_share: TimeShare,
        follow_streams: FollowStreams,
        watchdog: Watchdog,
        metrics: ModelMetrics,
    ) -> None:
        self._loaded = loaded
        self._requests = requests
        self._preemption = preemption
        self._follow_streams = follow_streams
        self._time_share = time_share
        self._watchdog = watchdog
        self._metrics = metrics
        self._given_targets = GivenTargets(requests, preemption, time_share)

    def put(self, is_stopping: Callable[[], bool]) -> bool:
        """Puts the next pending output of each request that has any. Returns whether any was put, or put off."""
        # Where no request can decode, a waiting request may start before the next long piece of work.
        can_decode = self._requests.can_any_decode
        self._watchdog.activity = Phase.READING_TARGETS, self._requests.running
        followed = self._given_targets.read(can_decode=can_decode)
        has_worked = self._follow_streams.accept_passes(followed) or self._time_share.has_put_off
        for state in [state for state in self._requests.running if state.has_pending_outputs]:
            if is_stopping():
                return True
            if state.is_blocked or (state.waits_for_batch and state.must_recompute):  # the latter lacks memory
                continue
            is_put_off = state.waits_for_batch or not self._time_share.may_work(can_decode=can_decode)
            if is_put_off and not state.is_pending_computed:
                self._time_share.has_put_off = has_worked = True
                continue
            began = time.monotonic()
            self._watchdog.activity = Phase.COMPUTING, (state,)
            has_worked = self._put_next(state) or has_worked
            while (
                state.is_pending_computed
                and state.pending_outputs is not None
                and not state.is_blocked
                and time.monotonic() - began < _DELIVERY_SECONDS
            ):
                self._put_next(state)
            notify([] if state.status is RequestStatus.FINISHED else [state.queue])  # an end wakes the reader too
            self._time_share.add_work(time.monotonic() - began)
            self._requests.rotate(state)
        return has_worked

    def _put_next(self, state: RequestState) -> bool:
        """Puts the next pending output of a request, without waking its reader. Returns whether that could be done."""
        try:
            if state.pending_outputs is None and not self._compute_outputs(state):
                return False
            assert state.pending_outputs is not None
            output = next(state.pending_outputs, _END)
        except Exception as error:  # one request's fault must not end the others
            self._requests.fail(state, error)
            return True
        state.num_pending_put += output is not None and output is not _END
        if output is None:
            state.is_pending_computed = False
        elif not isinstance(output, _End):
            state.is_pending_computed = state.is_pending_computed or isinstance(output, _COMPUTED)
            self._metrics.num_given_steps += isinstance(output, Step)
            state.queue.put(output, notifies=False)
        elif state.has_given_target:
            self._requests.finish(state, None)
        else:  # the decode steps follow
            state.pending_outputs, state.attention_bytes = None, 0
        return True

    def _compute_outputs(self, state: RequestState) -> bool:
        """Makes the pending outputs that have not been put. Returns False where they need more memory than there is."""
        if not self._preemption.make_memory_again(state):
            return False
        state.pending_outputs = _pending_outputs(self._loaded, state, self._requests.runner)
        return True


def _run_step(
    runner: Runner, states: dict[Sequence, RequestState], batch: list[Sequence], metrics: ModelMetrics
) -> list[tuple[RequestState, DecodeOutput]]:
    """Takes a decode step of a batch, and counts the step. Returns what each request gets."""
    began = time.monotonic()
    outputs = runner.decode(batch)
    metrics.record_step(time.monotonic() - began, len(batch))
    return [(states[sequence], output) for sequence, output in outputs]


def _put_started(loaded: LoadedModel, state: RequestState, sequence: Sequence) -> None:
    """Puts the first output of a request that has got a sequence."""
    state.record_source_read()
    detokenizer, started = make_started(loaded, state.request)
    state.builder = make_output_builder(loaded, state.request, detokenizer, started)
    if not state.is_announced:
        state.queue.put(started, notifies=False)
    state.num_pending_put = 0
    if state.attention_bytes:
        state.pending_outputs = split_encoder_self(sequence.pop_source_attention(), state.request.units)


def _pending_outputs(loaded: LoadedModel, state: RequestState, runner: Runner) -> Iterator[Output | None]:
    """The outputs that come without a decode step, and have not been put. Raises RequestError.

    Such outputs follow a beam search, belong to a given target, or are encoder self-attention.
    """
    request = state.request
    outputs: Iterator[Output | None]
    if state.hypotheses:
        recorded, state.search_steps = state.search_steps, None
        outputs = hypothesis_outputs(loaded, request, state.hypotheses, recorded, runner.target_pass)
    elif state.has_given_target:
        target_pass, state.target_pass = state.target_pass or runner.target_pass(request), None
        outputs = target_outputs(loaded, request, target_pass)
    else:
        outputs = split_encoder_self(runner.source_attention(request), request.units)
    return _leave_out(outputs, state.num_pending_put)


def _leave_out(outputs: Iterator[Output | None], count: int) -> Iterator[Output | None]:
    """Leaves out the first outputs. What says that a pass is next stays, and is not counted."""
    for output in outputs:
        if count and output is not None:
            count -= 1
        else:
            yield output
