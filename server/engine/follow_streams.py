"""What the events of the clients of follow streams do: to the streams' sequences, and to their outputs.

Events that need no forward pass are done between two decode steps. What a stream has to catch up on is one whole
sequence: source and target after a change of the source, several tokens of the client at once. It is read in a pass
together with other targets that wait (see `given_targets`). A single token is part of a decode step of all requests.
"""

from __future__ import annotations

import time

from ..errors import stopped
from ..models import LoadedModel
from ..request import Output
from ..runner import Rewind
from .follow import (
    MAX_EVENTS,
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
        self._resumed: list[RequestState] = []  # with a new sequence, which stands behind nothing yet

    def start(self, state: RequestState, follow: FollowState) -> None:
        """Takes up a stream that has just got a sequence, for the first time or again."""
        state.record_source_read()
        if follow.builder is not None:
            self._resumed.append(state)  # the source may be about to grow
            return
        follow.builder = FollowBuilder(self._loaded, state.request)
        if not state.is_announced:
            state.queue.put(follow.builder.started, notifies=False)
        self._request_encoder_self(state)

    def advance(self) -> bool:
        """Does what the clients' events ask for, up to the next forward pass. Returns whether there was any event."""
        rewound, self._resumed = self._resumed, []
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
        if rewound := [state for state in rewound if state.sequence is not None]:
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

    def accept_passes(self, states: list[RequestState]) -> bool:
        """Takes what passes over the sources and targets of some streams have given. Returns whether there are any."""
        for state in states:
            follow, target_pass = state.follow, state.target_pass
            assert follow is not None
            assert follow.builder is not None
            assert target_pass is not None
            state.target_pass = None
            try:
                for output in target_pass.decode():
                    new_ids, follow.new_ids = follow.new_ids, []
                    for step in follow.builder.accept_pass(output.steps(new_ids)):
                        state.queue.put(step, notifies=False)
            except Exception as error:  # one request's fault must not end the others
                self._requests.fail(state, error)
                continue
            self._requests.rotate(state)
        notify([state.queue for state in states])
        return bool(states)

    def _advance(self, state: RequestState, rewound: list[RequestState]) -> bool:
        """Does the next events of one stream, until one of them needs a pass, or rewinds the sequence."""
        follow, has_worked = state.follow, False
        assert follow is not None
        while not isinstance(event := follow.events.first, StreamBreak | None) and not state.queue.is_full:
            builder = follow.builder
            assert builder is not None
            is_behind = state.target_pass is not None or state in rewound
            if isinstance(event, TargetToken) and self._take_tokens(state, 1 if is_behind else 2):
                rewound += [] if state in rewound else [state]
                return True
            must_wait = not builder.is_written if builder.is_server_written else builder.is_incomplete
            if must_wait or follow.new_ids or (isinstance(event, TargetToken) and not builder.is_ahead):
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
                rewound += [] if state in rewound else [state]
                if builder.is_server_written or state.has_pending_outputs:
                    break
        return has_worked

    def _take_tokens(self, state: RequestState, least: int) -> bool:
        """Takes the client's next tokens for a pass, if there are so many at least, and there is a pass for them.

        Returns whether it did.
        """
        follow, request = state.follow, state.request
        assert follow is not None
        builder = follow.builder
        if builder is None or builder.is_server_written or builder.is_incomplete or follow.new_ids:
            return False
        # The steps of a pass wait for their reader together.
        num_read = request.source_length + len(request.decoder_prompt_ids) + len(builder.target_ids) + MAX_EVENTS
        new_ids = follow.events.target_ids(state.queue.capacity // max(1, request.step_bytes(num_read)))
        if len(new_ids) < least or self._requests.runner.catch_up_pass(_rewind_of(state, new_ids)) is None:
            return False
        for _ in new_ids:
            follow.events.pop()
        builder.forget_pass()
        follow.new_ids, follow.has_just_written = new_ids, True
        return True

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
            rewind = _rewind_of(state, state.follow.new_ids)
            state.target_pass = self._requests.runner.catch_up_pass(rewind)
            rewinds.append(rewind._replace(is_read_whole=state.target_pass is not None))
        faults = self._requests.runner.rewind(rewinds)
        for state, rewind in zip(states, rewinds, strict=True):
            if (error := faults.get(rewind.sequence)) is not None:
                self._requests.fail(state, error)

    def _request_encoder_self(self, state: RequestState) -> None:
        """Lets the engine compute and put the encoder's self-attention before the next step, if it is captured."""
        state.attention_bytes = 0
        state.pending_outputs, state.num_pending_put, state.is_pending_computed = None, 0, False
        state.must_recompute = state.request.single_pass_bytes > 0


def _rewind_of(state: RequestState, new_ids: list[int]) -> Rewind:
    """Where the sequence of a stream is to stand: behind its source, its steps, and new tokens of the client."""
    assert state.follow is not None
    assert state.follow.builder is not None
    assert state.sequence is not None
    ids = [*state.follow.builder.target_ids, *new_ids]
    return Rewind(state.sequence, without_encoder_self(state.request), ids, len(new_ids))
