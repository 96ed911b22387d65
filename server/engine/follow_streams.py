"""What the events of the clients of follow streams do: to the streams' sequences, and to their outputs.

Events that need no forward pass are done between two decode steps. Changed sources are read together, each stream's
one at a time. The passes themselves are part of the decode steps of all requests.
"""

from __future__ import annotations

import time

from ..errors import stopped
from ..models import LoadedModel
from ..request import Output
from ..runner import Rewind
from .follow import (
    FollowBuilder,
    FollowEvent,
    FollowState,
    SourceDone,
    SourceGrowth,
    StreamBreak,
    StreamEnd,
    TakeBack,
    TargetToken,
    without_encoder_self,
)
from .output_queue import OutputQueue, notify
from .request_state import RequestState
from .started_requests import StartedRequests


class FollowStreams:
    """The follow streams among the started requests. For the engine's thread."""

    def __init__(self, loaded: LoadedModel, requests: StartedRequests) -> None:
        self._loaded = loaded
        self._requests = requests

    def start(self, state: RequestState, follow: FollowState) -> None:
        """Takes up a stream that has just got a sequence, for the first time or again."""
        if follow.builder is not None:
            self._rewind([state])
            return
        follow.builder = FollowBuilder(self._loaded, state.request)
        if not state.is_announced:
            state.queue.put(follow.builder.started, notifies=False)
        self._request_encoder_self(state)

    def advance(self) -> bool:
        """Does what the clients' events ask for, up to the next forward pass. Returns whether there was any event."""
        rewound: list[RequestState] = []
        queues: list[OutputQueue] = []
        now = time.monotonic()
        self._end_broken()
        for state in [state for state in self._requests.running if state.follow is not None]:
            if state.follow is not None and not state.is_idle:
                state.follow.active_at = now
            is_ready = state.sequence is not None and not state.has_pending_outputs
            try:
                if is_ready and self._advance(state, rewound):
                    queues.append(state.queue)
            except Exception as error:  # one request's fault must not end the others
                self._requests.fail(state, error)
        if rewound:
            self._rewind(rewound)
        notify(queues)
        return bool(queues)

    def _end_broken(self) -> None:
        """Ends streams that have done all events that were read, where the server is about to end.

        A stream without a slot needs none for that.
        """
        for state in [state for state in self._requests if state.follow is not None and state.is_idle]:
            if state.follow is not None and isinstance(state.follow.events.first, StreamBreak):
                self._requests.finish(state, stopped())

    def _advance(self, state: RequestState, rewound: list[RequestState]) -> bool:
        """Does the next events of one stream, until one of them needs a pass, or rewinds the sequence."""
        follow, has_worked = state.follow, False
        assert follow is not None
        while not isinstance(event := follow.events.first, StreamBreak | None) and not state.queue.is_full:
            builder = follow.builder
            assert builder is not None
            must_wait = not builder.is_written if builder.is_server_written else builder.is_incomplete
            if must_wait or (isinstance(event, TargetToken) and not builder.is_ahead):
                break
            follow.events.pop()
            has_worked = True
            follow.has_just_written = isinstance(event, TargetToken)
            for output in self._apply(event, state, builder):
                state.queue.put(output, notifies=False)
            if builder.is_finished:
                state.queue.end(notifies=False)
                self._requests.finish(state, None)
                break
            if isinstance(event, SourceGrowth):
                self._request_encoder_self(state)
            if not isinstance(event, TargetToken) and (builder.is_server_written or not builder.is_ahead):
                rewound.append(state)
                break
        return has_worked

    def _apply(self, event: FollowEvent, state: RequestState, builder: FollowBuilder) -> list[Output]:
        """Does one event. Returns its outputs."""
        if isinstance(event, SourceGrowth):
            state.request = event.request
            return builder.set_source(event.request)
        if isinstance(event, TakeBack):
            return builder.take_back(event.count)
        if isinstance(event, TargetToken):
            assert state.sequence is not None
            return builder.accept(event.id, self._requests.runner.accept(state.sequence, event.id))
        if isinstance(event, StreamEnd) and not builder.is_server_written:
            return [builder.finish()]
        assert isinstance(event, SourceDone | StreamEnd)
        return builder.complete_source()

    def _rewind(self, states: list[RequestState]) -> None:
        """Puts the sequences of streams behind their sources and steps as they are now."""
        rewinds: list[Rewind] = []
        for state in states:
            assert state.follow is not None
            assert state.follow.builder is not None
            assert state.sequence is not None
            ids = state.follow.builder.target_ids
            rewinds.append(Rewind(state.sequence, without_encoder_self(state.request), [*ids]))
        faults = self._requests.runner.rewind(rewinds)
        for state, rewind in zip(states, rewinds, strict=True):
            if (error := faults.get(rewind.sequence)) is not None:
                self._requests.fail(state, error)

    def _request_encoder_self(self, state: RequestState) -> None:
        """Lets the engine compute and put the encoder's self-attention before the next step, if it is captured."""
        state.attention_bytes = 0
        state.pending_outputs, state.num_pending_put, state.is_pending_computed = None, 0, False
        state.must_recompute = state.request.single_pass_bytes > 0
