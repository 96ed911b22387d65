"""Session: one front end in the engine's process. It hands requests to the engines, and outputs to the front end.

An output leaves the engine's queue when it is sent to the front end, and counts as held until the front end's reader
has taken it: the bound of the queue holds over both processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..engine import (
    Engine,
    EventQueue,
    FollowEvent,
    HeldBack,
    OutputQueue,
    ReadyQueues,
    RequestState,
    Reservation,
)
from ..errors import RequestError
from ..operations import CallContext, Identity, RequestTimes, as_current
from ..request import Output, Request
from .channel import Channel, ChannelEnd
from .counters import Growth
from .questions import Questions
from .remote_streams import SessionPlaces

# `OutputQueue.take` gives all there is.
_EVERYTHING = 1 << 62

# The outputs of one request in a message: the request's number, when it started, its outputs, and its end.
Delivery = tuple[int, float | None, list[Output], "End | None"]
# Why a request has ended, and when its stages were.
End = tuple[RequestError | None, RequestTimes]
# The arguments of `MethodMetrics`.
MethodDescription = tuple[str, str, str, tuple[str, ...]]


class Owner(Protocol):
    """What a session asks of the process: what concerns other front ends too."""

    def count_request(self, identity: Identity) -> None:
        """Counts a request of a client. Raises RequestError where the client may have no more."""
        ...

    def end_requests(self, identity: Identity, count: int) -> None:
        """Counts so many requests no more."""
        ...

    async def cancel_elsewhere(self, session: Session, request_id: str, identity: Identity | None) -> int:
        """Cancels the requests of an id that a client has sent to other sessions. Returns how many there were."""
        ...

    def hold_back(self) -> None:
        """Takes note that what a session has said in `held_back` has changed."""
        ...

    def add_growth(self, growth: Growth) -> None:
        """Adds what a front end has counted."""
        ...

    def note_ready(self, session: Session, methods: Sequence[MethodDescription]) -> None:
        """Takes note that a front end listens, and of its methods."""
        ...

    def note_end(self, session: Session) -> None:
        """Takes note that a front end has gone."""
        ...


class _EventRelay:
    """The events of one follow stream, on their way to the engine. The front end sends few that are not taken."""

    def __init__(self, events: EventQueue, on_taken: Callable[[], None]) -> None:
        self.waiting: asyncio.Queue[FollowEvent] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._hand_over(events, on_taken))

    async def _hand_over(self, events: EventQueue, on_taken: Callable[[], None]) -> None:
        while True:
            await events.put(await self.waiting.get())
            on_taken()


class Session:
    """One front end, from the beginning of its process to its end. For one event loop.

    Attributes:
        held_back: For each model, which requests come after others, as the front end says.
        send: Sends a message to the front end.
    """

    def __init__(self, engines: Mapping[str, Engine], owner: Owner, end: ChannelEnd) -> None:
        """`engines` are by the names of their models."""
        self.held_back: dict[str, HeldBack] = {}
        self._engines = engines
        self._owner = owner
        self._channel = Channel(end, self._receive, self._close)
        self.send = self._channel.send
        self._receive_growth = owner.add_growth
        self._receive_listening = partial(owner.note_ready, self)
        self._ready = ReadyQueues()
        self._places: dict[int, Reservation] = {}
        self._requests: dict[int, tuple[RequestState, Engine]] = {}
        self._numbers: dict[OutputQueue, int] = {}  # of the requests
        self._events: dict[int, _EventRelay] = {}
        self._num_requests_of: Counter[Identity] = Counter()
        self._questions = Questions(self.send)
        self._receive_answer = self._questions.answer
        self._follow_places = SessionPlaces(engines, self._questions.ask, self.send)
        self._receive_close_stream = self._follow_places.close
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self, *hello: Any) -> None:
        """Begins. `hello` is what the front end must know first."""
        await self._channel.open()
        self._channel.send("hello", *hello)
        self._channel.flush()
        # From here on, the front end has the objects too.
        self._channel.references.add_models([engine.loaded for engine in self._engines.values()])
        self._start(self._deliver())

    def close(self) -> None:
        """Ends the channel. The front end takes that for the end of this process, unless it was told to stop."""
        self._channel.close()

    async def cancel(self, request_id: str, identity: Identity | None) -> int:
        """Cancels the requests of an id that a client has sent to this front end. Returns how many there were."""
        return await self._questions.ask("cancel", request_id, identity) or 0

    def _start(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _receive(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Calls the method of a message: the names are those that `remote_engine` and the front end send."""
        getattr(self, f"_receive_{name}")(*arguments)

    def _close(self) -> None:
        """Ends all that the front end has asked for."""
        for task in [*self._tasks, *(relay.task for relay in self._events.values())]:
            task.cancel()
        for state, engine in self._requests.values():
            state.queue.cancel()
            engine.wake()
        for place in self._places.values():
            place.release()
        for identity, count in self._num_requests_of.items():
            self._owner.end_requests(identity, count)
        self._questions.close()
        self._follow_places.close_all()
        self._requests.clear()
        self._numbers.clear()
        self._places.clear()
        self._num_requests_of.clear()
        self._owner.note_end(self)

    # ---- requests ---------------------------------------------------------------------------------------------------

    def _receive_reserve(self, number: int, model: str, client: Hashable, feature_bytes: int) -> None:
        engine = self._engines[model]

        async def reserve() -> None:
            self._places[number] = await engine.reserve(client, feature_bytes)

        self._start(self._reply(number, reserve()))

    async def _reply(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        """Tells the front end that something was done, or why not."""
        try:
            await coroutine
        except RequestError as error:
            self.send("reply", number, error)
        else:
            self.send("reply", number, None)

    def _receive_release(self, number: int) -> None:
        place = self._places.pop(number, None)
        if place is not None:
            place.release()

    def _receive_submit(
        self,
        number: int,
        model: str,
        request: Request,
        deadline: float | None,
        place: int,
        is_follow: bool,
        call: CallContext | None,
    ) -> None:
        engine = self._engines[model]
        queue = engine.new_queue(self._ready)
        events = engine.new_events() if is_follow else None
        began = time.monotonic()
        try:
            with as_current(call):
                state = engine.submit(request, queue, deadline, self._places.pop(place, None), events)
        except RequestError as error:
            times = RequestTimes(began, None, None, time.monotonic())
            self.send("outputs", [(number, None, [], (error, times))])
            return
        self._requests[number] = state, engine
        self._numbers[queue] = number
        if events is not None:
            self._events[number] = _EventRelay(events, lambda: self.send("event_taken", number))

    def _receive_event(self, number: int, event: FollowEvent) -> None:
        if number in self._events:
            self._events[number].waiting.put_nowait(event)

    def _receive_sent(self, sent: list[tuple[int, int]]) -> None:
        for number, num_bytes in sent:
            if number in self._requests:
                state, engine = self._requests[number]
                state.queue.release_sent(num_bytes)
                if state.follow is not None:
                    engine.wake()  # which may have put off a pass meanwhile

    def _receive_drop(self, number: int) -> None:
        if number in self._requests:
            state, _ = self._requests[number]
            self._forget(number)
            state.queue.cancel()

    def _forget(self, number: int) -> None:
        state, _ = self._requests.pop(number)
        del self._numbers[state.queue]
        if number in self._events:
            self._events.pop(number).task.cancel()

    # ---- outputs ----------------------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        """Sends the outputs of all requests. Wakes once for a step of all of them."""
        while True:
            queues = await self._ready.wait()
            numbers = [self._numbers[queue] for queue in queues if queue in self._numbers]
            deliveries = [delivery for number in numbers if (delivery := self._take(number)) is not None]
            if deliveries:
                self._channel.send("outputs", deliveries)
                self._channel.flush()

    def _take(self, number: int) -> Delivery | None:
        state, _ = self._requests[number]
        outputs, end = _take_outputs(state)
        if end is not None:
            self._forget(number)
        return (number, state.start_time, outputs, end) if outputs or end is not None else None

    # ---- other front ends, and the end -------------------------------------------------------------------------------

    def _receive_count(self, number: int, identity: Identity) -> None:
        try:
            self._owner.count_request(identity)
        except RequestError as error:
            self.send("reply", number, error)
            return
        self._num_requests_of[identity] += 1
        self.send("reply", number, None)

    def _receive_uncount(self, identity: Identity, count: int) -> None:
        self._num_requests_of[identity] -= count
        self._owner.end_requests(identity, count)

    def _receive_cancel_elsewhere(self, number: int, request_id: str, identity: Identity | None) -> None:
        async def cancel() -> None:
            self.send("reply", number, await self._owner.cancel_elsewhere(self, request_id, identity))

        self._start(cancel())

    def _receive_open_stream(self, number: int, model: str, stream: int) -> None:
        self._start(self._reply(number, self._follow_places.open(model, stream)))

    def _receive_hold_back(
        self, model: str, stalled: list[int], stalled_of: Mapping[Hashable, int], reading_of: Mapping[Hashable, int]
    ) -> None:
        states = [self._requests[number][0] for number in stalled if number in self._requests]
        self.held_back[model] = HeldBack(states, stalled_of, reading_of)
        self._owner.hold_back()

    def _receive_drain(self, model: str, seconds: float) -> None:
        self._engines[model].drain(seconds)


def _take_outputs(state: RequestState) -> tuple[list[Output], End | None]:
    """Returns all outputs that a request has now, and its end if it has ended."""
    outputs: list[Output] = []
    error: RequestError | None = None
    try:
        while taken := state.queue.take(_EVERYTHING):
            outputs += taken
        if taken is None:  # more will come
            return outputs, None
    except RequestError as raised:
        error = raised
    return outputs, (
        error,
        RequestTimes(state.arrival_time, state.start_time, state.source_read_time, time.monotonic()),
    )
