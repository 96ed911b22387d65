"""FollowState: one follow stream in the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from ...request import Request
from .event_queue import EventQueue
from .events import StreamBreak, TargetToken
from .follow_builder import FollowBuilder


@dataclass(eq=False)
class FollowState:
    """What a stream has, beside what every request has. Times are in seconds of `time.monotonic`."""

    events: EventQueue
    builder: FollowBuilder | None = None  # once the request has started
    new_ids: list[int] = field(default_factory=list[int])  # taken tokens of the client: the next pass gives their steps
    has_just_written: bool = False  # whether the last event was a token of the client: the next token is near
    active_at: float = field(default_factory=time.monotonic)  # when the stream last had anything to do

    @property
    def needs_pass(self) -> bool:
        """Whether a forward pass comes next."""
        builder = self.builder
        if builder is None:
            return False
        if builder.is_server_written:
            return not builder.is_written
        is_near = self.has_just_written or builder.is_incomplete or isinstance(self.events.first, TargetToken)
        return is_near and not builder.is_ahead

    @property
    def is_early(self) -> bool:
        """Whether the next forward pass is for a token that the client has not sent yet."""
        builder = self.builder
        if builder is None or builder.is_server_written or builder.is_incomplete:
            return False
        return self.needs_pass and self.events.first is None

    @property
    def has_work(self) -> bool:
        """Whether the stream goes on without another event of its client."""
        return self.builder is None or self.needs_pass or not isinstance(self.events.first, StreamBreak | None)

    def forget_sequence(self) -> None:
        """Takes note that the stream has no sequence any more. Its next event makes another one."""
        self.has_just_written = False
        if self.builder is not None:
            self.builder.forget_pass()


def without_encoder_self(request: Request) -> Request:
    """A request as a runner gets it: a pass of its own computes encoder self-attention, after each growth."""
    kinds = tuple(kind for kind in request.capture.kinds if kind != "encoder_self")
    return replace(request, capture=replace(request.capture, kinds=kinds))
