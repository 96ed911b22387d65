"""The engines of another process, as the API of a front end sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engine import FollowEvent, HeldBack, OutputQueue, ReadyQueues, RequestStatus
from ..errors import RequestError, broken, stopped, too_few_slots
from ..models import ModelDescription
from ..operations import CallContext, Identity, ModelLoad, ModelMetrics, RequestTimes, current_call
from ..request import Request
from .channel import Channel, ChannelEnd
from .remote_streams import RemotePlaces
from .session import Delivery

# The engine hears of what a reader has taken when that is this part of what may be held for the reader.
_REPORTED_PART = 8

# Events of one follow stream that are on their way to the engine.
_MAX_SENT_EVENTS = 8


@dataclass(frozen=True)
class EngineDescription:
    """What a front end must know of an engine."""

    model: ModelDescription
    num_slots: int
    max_unread_bytes: int | None  # held for one reader; None: the default of OutputQueue


@dataclass(eq=False)
class RemoteRequest:
    """A request that an engine of another process has. See `EngineRequest`."""

    number: int
    request: Request
    queue: OutputQueue
    model: str
    call: CallContext | None
    events: RemoteEvents | None = None
    status: RequestStatus = RequestStatus.WAITING
    start_time: float | None = None
    num_sent_bytes: int = 0  # that the engine has not heard of

    def end(self, error: RequestError | None, times: RequestTimes | None) -> None:
        """Ends the queue, and records the stages of the request where its call is recorded."""
        self.status = RequestStatus.FINISHED
        self.queue.end(error)
        if times is not None and self.call is not None and self.call.trace is not None:
            reason = "" if error is None else error.reason
            self.call.trace.record_request(self.model, self.request.request_id, times, reason)


class RemotePlace:
    """A place in the queue of an engine of another process."""

    def __init__(self, link: EngineLink, number: int) -> None:
        self.number = number
        self._link = link
        self._is_held = True

    def __enter__(self) -> RemotePlace:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_held:
            self._link.send("release", self.number)
            self._is_held = False

    def take(self) -> int:
        """Gives the place to a request, which the engine's process does. Returns its number."""
        self._is_held = False
        return self.number


class RemoteEvents:
    """The events of a follow stream, on their way to another process. Few are on the way at once."""

    def __init__(self, link: EngineLink) -> None:
        self.number = 0  # of the request, as soon as it is known
        self._link = link
        self._room = asyncio.Semaphore(_MAX_SENT_EVENTS)

    async def put(self, event: FollowEvent) -> None:
        """Adds an event. Waits until there is room."""
        await self._room.acquire()
        self._link.send("event", self.number, event)

    def note_taken(self) -> None:
        """Takes note that the engine has an event."""
        self._room.release()


class EngineLink:
    """The connection of a front end to the engine's process. For one event loop.

    Attributes:
        engines: The engines, the default model's first; empty before `open` returns.
        is_serving: For each model, whether it served when this front end began.
        on_message: Gets each message that does not concern requests: its name and its arguments.
    """

    def __init__(
        self, end: ChannelEnd, on_message: Callable[[str, tuple[Any, ...]], None], on_close: Callable[[], None]
    ) -> None:
        """`on_close` is called when the other process has gone."""
        self.engines: list[RemoteEngine] = []
        self.is_serving: dict[str, bool] = {}
        self.loop = asyncio.get_running_loop()
        self.on_message = on_message
        self._on_close = on_close
        self._channel = Channel(end, self._receive, self._close)
        self._hello: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._num_numbers = 0
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._requests: dict[int, RemoteRequest] = {}
        self._sent: dict[int, int] = {}  # bytes that the engine is about to hear of
        self._refusal: RequestError | None = None

    async def open(self) -> None:
        """Waits for what the engine's process says of its engines."""
        await self._channel.open()
        await self._hello

    def send(self, name: str, *arguments: Any) -> None:
        """Sends a message to the engine's process."""
        self._channel.send(name, *arguments)

    async def ask(self, name: str, *arguments: Any, undo: Callable[[int], None] | None = None) -> tuple[int, Any]:
        """Sends a message with a new number, and waits for the reply. Returns both. Raises RequestError.

        `undo` gets the number of what was done for a task that was cancelled meanwhile.
        """
        if self._refusal is not None:
            raise self._refusal
        number = self.new_number()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[number] = future
        self.send(name, number, *arguments)
        try:
            value = await asyncio.shield(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda done: None if isinstance(done.result(), RequestError) else undo(number))
            raise
        if isinstance(value, RequestError):
            raise value
        return number, value

    def new_number(self) -> int:
        """Returns a number that nothing else of this front end has."""
        self._num_numbers += 1
        return self._num_numbers

    # ---- requests ---------------------------------------------------------------------------------------------------

    def add(self, state: RemoteRequest) -> None:
        """Hears of a request from now on."""
        self._requests[state.number] = state
        if self._refusal is not None:
            self._end(state, self._refusal, None)

    def note_room(self, state: RemoteRequest) -> None:
        """Tells the engine where the outputs of a request are not wanted any more."""
        if state.queue.is_cancelled and self._requests.pop(state.number, None) is not None:
            self._sent.pop(state.number, None)
            self.send("drop", state.number)

    def note_sent(self, state: RemoteRequest, num_bytes: int) -> None:
        """Tells the engine, soon, what a reader has taken."""
        state.num_sent_bytes += num_bytes
        # A follow stream puts a pass off until all is sent.
        is_due = state.events is not None or state.num_sent_bytes * _REPORTED_PART >= state.queue.capacity
        if not is_due or state.number not in self._requests:
            return
        if not self._sent:
            asyncio.get_running_loop().call_soon(self._report_sent)
        self._sent[state.number] = self._sent.get(state.number, 0) + state.num_sent_bytes
        state.num_sent_bytes = 0

    def _report_sent(self) -> None:
        sent, self._sent = self._sent, {}
        if sent:
            self.send("sent", list(sent.items()))

    def end_requests(self, error: RequestError) -> None:
        """Ends all requests of this front end, and refuses new ones."""
        self._refusal = error
        for state in list(self._requests.values()):
            self.send("drop", state.number)
            self._end(state, error, None)

    def stalled(self, states: frozenset[Any], model: str) -> list[int]:
        """Returns the numbers of the requests of a model that are among some."""
        return [state.number for state in states if isinstance(state, RemoteRequest) and state.model == model]

    def _end(self, state: RemoteRequest, error: RequestError | None, times: RequestTimes | None) -> None:
        self._requests.pop(state.number, None)
        state.end(error, times)

    # ---- messages ---------------------------------------------------------------------------------------------------

    def _receive(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "outputs":
            self._deliver(*arguments)
        elif name == "reply":
            number, value = arguments
            self._replies.pop(number).set_result(value)
        elif name == "event_taken":
            state = self._requests.get(arguments[0])
            if state is not None and state.events is not None:
                state.events.note_taken()
        elif name == "find_idlest":
            number, model = arguments
            self._engine(model).follow_places.answer_idlest(number)
        elif name == "end_idle":
            model, number = arguments
            self._engine(model).follow_places.end_idle(number)
        elif name == "hello":
            self._begin(*arguments)
        else:
            self.on_message(name, arguments)

    def _engine(self, model: str) -> RemoteEngine:
        return next(engine for engine in self.engines if engine.loaded.name == model)

    def _begin(self, descriptions: Sequence[EngineDescription], is_serving: dict[str, bool]) -> None:
        self.is_serving = is_serving
        self._channel.references.add_models([each.model for each in descriptions])
        self.engines = [RemoteEngine(each, self) for each in descriptions]
        self._hello.set_result(None)

    def _deliver(self, deliveries: Sequence[Delivery]) -> None:
        for number, start_time, outputs, end in deliveries:
            state = self._requests.get(number)
            if state is None:  # its outputs are not wanted any more
                continue
            state.start_time = start_time
            for output in outputs:
                state.queue.put(output, notifies=False)
            if end is not None:
                self._end(state, *end)
            else:
                state.queue.announce()

    def _close(self) -> None:
        """Ends all requests: the engine's process has gone."""
        self._refusal = self._refusal or broken()
        if not self._hello.done():
            self._hello.cancel()
        for future in self._replies.values():
            if not future.done():
                future.set_result(self._refusal)
        self._replies.clear()
        for state in list(self._requests.values()):
            self._end(state, self._refusal, None)
        self._on_close()

    def close(self) -> None:
        """Ends the connection, once all that was sent has gone."""
        self._channel.close()


class RemoteClients:
    """The clients of all front ends, which the engine's process counts. See `Clients`."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link

    async def begin_request(self, identity: Identity) -> None:
        """Counts a request of a client. Raises RequestError where the client may have no more."""
        await self._link.ask("count", identity, undo=lambda _: self.end_requests(identity, 1))

    def end_requests(self, identity: Identity, count: int) -> None:
        """Counts so many requests of a client no more."""
        self._link.send("uncount", identity, count)

    async def cancel_elsewhere(self, request_id: str, identity: Identity | None) -> int:
        """Cancels the requests of an id that a client has sent to other front ends. Returns how many there were."""
        return (await self._link.ask("cancel_elsewhere", request_id, identity))[1]


class RemoteEngine:
    """An engine of another process. See `EngineClient`, and `Engine` for what the methods do. For one event loop."""

    def __init__(self, description: EngineDescription, link: EngineLink) -> None:
        self.loaded = description.model
        self.num_slots = description.num_slots
        self.metrics = ModelMetrics(self.loaded.name, ModelLoad)
        self.follow_places = RemotePlaces(self.loaded.name, link.ask, link.send)
        self._max_unread_bytes = description.max_unread_bytes
        self._link = link

    def new_queue(self, ready: ReadyQueues | None = None) -> OutputQueue:
        """Makes the queue of a request."""
        return OutputQueue(lambda: None, ready, self._max_unread_bytes)

    def new_events(self) -> RemoteEvents:
        """Makes the events of a follow stream."""
        return RemoteEvents(self._link)

    async def reserve(self, client: Hashable = None, feature_bytes: int = 0) -> RemotePlace:
        """Takes a place in the queue. Raises RequestError."""
        number, _ = await self._link.ask(
            "reserve", self.loaded.name, client, feature_bytes, undo=lambda number: self._link.send("release", number)
        )
        return RemotePlace(self._link, number)

    def submit(
        self,
        request: Request,
        queue: OutputQueue,
        deadline: float | None = None,
        reservation: RemotePlace | None = None,
        events: RemoteEvents | None = None,
    ) -> RemoteRequest:
        """Queues a request. Its errors come from `queue`."""
        assert reservation is not None
        link, name, call = self._link, self.loaded.name, current_call.get()
        state = RemoteRequest(link.new_number(), request, queue, name, call, events)
        if request.num_sequences > self.num_slots:
            field = "decoding.beam.width" if request.beam is not None else "contrast"
            raise too_few_slots(request.num_sequences, self.num_slots, field)
        queue.on_room = lambda: link.note_room(state)
        queue.on_sent = lambda num_bytes: link.note_sent(state, num_bytes)
        if events is not None:
            events.number = state.number
        ids = None if call is None else replace(call, trace=None)
        link.send("submit", state.number, name, request, deadline, reservation.take(), events is not None, ids)
        link.add(state)
        return state

    def wake(self) -> None:
        """Does nothing: the engine's process hears what a reader takes, and wakes the engine."""

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which requests come after others."""
        name = self.loaded.name
        stalled = self._link.stalled(held_back.requests, name)
        self._link.send("hold_back", name, stalled, held_back.stalled_of, held_back.reading_of)

    def drain(self, seconds: float) -> None:
        """Ends the waiting requests that would not be done in so many seconds."""
        self._link.send("drain", self.loaded.name, seconds)

    def stop(self) -> None:
        """Ends all requests of this front end with UNAVAILABLE, soon. The engine goes on. For any thread."""
        self._link.loop.call_soon_threadsafe(self._link.end_requests, stopped())
