"""One request in the engine: its status, its sequence, the outputs that wait, its times."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import RequestError
from ..operations import CallContext, RequestTimes
from ..request import GivenTarget, Hypothesis, Output, Request
from ..runner import Sequence, StepOutput, TargetPass
from .follow import FollowState, without_encoder_self
from .output_queue import OutputQueue
from .outputs import OutputBuilder

# Seconds for which a reader may take nothing while its queue is full, before its request counts as slow.
SLOW_SECONDS = 0.25


class RequestStatus(enum.Enum):
    """Where a request is in the engine."""

    WAITING = enum.auto()  # in the waiting queue; nothing has been computed
    STARTING = enum.auto()  # about to get a sequence
    RUNNING = enum.auto()  # takes steps, as far as its reader takes outputs
    PREEMPTED = enum.auto()  # has started, and waits without a slot for its reader
    FINISHED = enum.auto()  # its queue has ended


@dataclass(eq=False)
class RequestState:
    """A request on its way through the engine. Times are in seconds of `time.monotonic`.

    The engine's thread owns it from the start of the request on; until then, the admission queue does.
    """

    request: Request
    queue: OutputQueue
    deadline: float | None = None
    follow: FollowState | None = None  # of a follow stream
    call: CallContext | None = None
    arrival_time: float = field(default_factory=time.monotonic)
    start_time: float | None = None
    source_read_time: float | None = None  # of a decoded request
    status: RequestStatus = RequestStatus.WAITING
    is_announced: bool = False  # whether the first output was put before the start

    # Of a decoded request, once it has started.
    sequence: Sequence | None = None
    builder: OutputBuilder | None = None

    # What a beam search has found. Since then, the target of `request` is given: it is the best hypothesis.
    hypotheses: tuple[Hypothesis, ...] = ()
    # The steps of the best hypothesis as the search recorded them, until the pending outputs hold the steps.
    search_steps: list[StepOutput] | None = None

    # The passes of a given target, from a batch's first look at them until the pending outputs have them. Of a follow
    # stream: the pass that its sequence needs before the next decode step.
    target_pass: TargetPass | None = None

    # Outputs that come without a decode step: all outputs of a given target; encoder self-attention.
    # None among them says that the next output takes a forward pass.
    pending_outputs: Iterator[Output | None] | None = None
    num_pending_put: int = 0  # how many of the pending outputs have been put
    is_pending_computed: bool = False  # whether the remaining pending outputs need no forward pass
    attention_bytes: int = 0  # of attention that the pending outputs hold until all have been put
    must_recompute: bool = False  # whether the pending outputs were dropped, and must be computed again

    # Since when the request was blocked, and the bytes of the cache then.
    counted_cache: tuple[float | None, int] | None = None

    @property
    def has_given_target(self) -> bool:
        """Whether the target is given, or a beam search has found it. Such a request has no sequence."""
        return isinstance(self.request.target, GivenTarget)

    @property
    def runner_request(self) -> Request:
        """The request as a runner gets it."""
        return self.request if self.follow is None else without_encoder_self(self.request)

    @property
    def is_resumed(self) -> bool:
        """Whether a follow stream has started before. It may have lost its sequence since."""
        return self.follow is not None and self.follow.builder is not None

    @property
    def is_blocked(self) -> bool:
        """Whether the client must do something before the request goes on: read outputs, or send events."""
        return self.queue.is_full or self.is_idle

    @property
    def is_idle(self) -> bool:
        """Whether a follow stream waits for its client."""
        follow = self.follow
        if follow is None or self.attention_bytes or self.must_recompute or self.target_pass is not None:
            return False
        return not follow.has_work or self.is_sending

    @property
    def is_sending(self) -> bool:
        """Whether the next pass can wait until a step is sent: its token has not come, and the pass would take time."""
        return self.follow is not None and self.follow.is_early and self.queue.has_unsent

    @property
    def blocked_since(self) -> float | None:
        """Since when the client must do something; None where it need not."""
        since = self.queue.full_since
        if since is None and self.follow is not None and self.is_idle:
            return self.follow.active_at
        return since

    @property
    def can_decode(self) -> bool:
        """Whether the request can take a decode step, or a chunk of its prompt."""
        if self.sequence is None or self.attention_bytes or self.must_recompute or self.queue.is_full:
            return False
        return self.follow is None or (self.follow.needs_pass and self.target_pass is None)

    @property
    def has_pending_outputs(self) -> bool:
        """Whether the next output comes without a decode step."""
        return self.sequence is None or self.attention_bytes > 0 or self.must_recompute

    @property
    def waits_for_batch(self) -> bool:
        """Whether the pass over a target has not run, and may run together with those of others."""
        if self.follow is not None:
            return self.target_pass is not None
        if self.pending_outputs is not None or self.is_pending_computed or self.hypotheses or not self.has_given_target:
            return False
        return self.target_pass is None or self.target_pass.can_share

    def record_source_read(self) -> None:
        """Takes note of the time, the first time that the source of the sequence is read to its end."""
        if self.source_read_time is None and self.sequence is not None and not self.sequence.is_prefilling:
            self.source_read_time = time.monotonic()

    def end(self, error: RequestError | None, model: str) -> None:
        """Ends the queue. The first time, it also records the stages of the request where its call is recorded."""
        is_new = self.status is not RequestStatus.FINISHED
        self.status = RequestStatus.FINISHED
        self.queue.end(error)
        if is_new and self.call is not None and self.call.trace is not None:
            times = RequestTimes(self.arrival_time, self.start_time, self.source_read_time, time.monotonic())
            reason = "" if error is None else error.reason
            self.call.trace.record_request(model, self.request.request_id, times, reason)

    def is_expired(self, now: float) -> bool:
        """Whether the outputs are not wanted any more: the call is cancelled, or past its deadline."""
        return self.queue.is_cancelled or (self.deadline is not None and now >= self.deadline)

    def is_slow(self, now: float, seconds: float = SLOW_SECONDS) -> bool:
        """Whether the client has done nothing for so many seconds, in which it had to do something."""
        since = self.blocked_since
        return since is not None and now - since > seconds
