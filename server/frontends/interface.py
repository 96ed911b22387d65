"""What the API needs of engines and of the other front ends, wherever these are: in this process or in another one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any, Protocol

from ..engine import FollowEvent, HeldBack, OutputQueue, ReadyQueues, RequestStatus, StreamHolder
from ..errors import too_many_requests
from ..models import ModelInfo
from ..operations import Identity, ModelMetrics
from ..request import Request


class EngineRequest(Protocol):
    """A request that an engine has. `RequestState` is one."""

    @property
    def request(self) -> Request:
        """The request."""
        ...

    @property
    def queue(self) -> OutputQueue:
        """Where its outputs come from."""
        ...

    @property
    def status(self) -> RequestStatus:
        """Where it is in the engine. FINISHED, WAITING or anything between them."""
        ...

    @property
    def start_time(self) -> float | None:
        """When the engine started it, by `time.monotonic`; None before."""
        ...


class Place(Protocol):
    """A place in the queue of an engine, until a request takes it or it is released. A context that releases it."""

    def __enter__(self) -> Place: ...

    def __exit__(self, *_: object) -> None: ...


class Events(Protocol):
    """The events of a follow stream. `EventQueue` is one."""

    async def put(self, event: FollowEvent) -> None:
        """Adds an event. Waits until there is room."""
        ...


class StreamPlaces(Protocol):
    """The places of the follow streams of a model, in all front ends together. `FollowPlaces` is one."""

    async def open(self, holder: StreamHolder, number: int) -> None:
        """Gives a stream a place. Raises RequestError where there is none. `holder` is the same for all streams."""
        ...

    def close(self, holder: StreamHolder, number: int) -> None:
        """Takes the place of a stream back, where the stream still has one."""
        ...


class EngineClient(Protocol):
    """One model's engine as the API sees it. `Engine` is one, in the same process. See there what the methods do."""

    @property
    def loaded(self) -> ModelInfo:
        """The model."""
        ...

    @property
    def num_slots(self) -> int:
        """How many sequences the engine runs at once."""
        ...

    @property
    def metrics(self) -> ModelMetrics:
        """The counters of what is sent."""
        ...

    @property
    def follow_places(self) -> StreamPlaces:
        """The places of follow streams."""
        ...

    def new_queue(self, ready: ReadyQueues | None = None) -> OutputQueue:
        """Makes the queue of a request."""
        ...

    def new_events(self) -> Events:
        """Makes the events of a follow stream."""
        ...

    async def reserve(self, client: Hashable = None, feature_bytes: int = 0) -> Place:
        """Takes a place in the queue. Raises RequestError."""
        ...

    def submit(
        self,
        request: Request,
        queue: OutputQueue,
        deadline: float | None = None,
        reservation: Any = None,
        events: Any = None,
    ) -> EngineRequest:
        """Queues a request. Raises RequestError.

        `reservation` and `events` are what `reserve` and `new_events` of the same engine have given, as each kind of
        engine has types of its own for them.
        """
        ...

    def wake(self) -> None:
        """Makes the engine look at its requests again."""
        ...

    def hold_back(self, held_back: HeldBack) -> None:
        """Says which requests come after others."""
        ...

    def drain(self, seconds: float) -> None:
        """Ends the waiting requests that would not be done in so many seconds."""
        ...

    def stop(self) -> None:
        """Ends all requests with UNAVAILABLE."""
        ...


class Clients(Protocol):
    """The clients of all front ends: how many requests each has, and the calls that other front ends answer."""

    async def begin_request(self, identity: Identity) -> None:
        """Counts a request of a client. Raises RequestError where the client may have no more."""
        ...

    def end_requests(self, identity: Identity, count: int) -> None:
        """Counts so many requests of a client no more."""
        ...

    async def cancel_elsewhere(self, request_id: str, identity: Identity | None) -> int:
        """Cancels the requests of an id that a client has sent to other front ends. Returns how many there were."""
        ...


class ClientCounts:
    """The open requests of all clients with names: the `Clients` of a server with one process. For one event loop."""

    def __init__(self) -> None:
        self._num_requests_of: Counter[Identity] = Counter()

    def count(self, identity: Identity) -> None:
        """Counts a request. Raises RequestError where the client may have no more."""
        limit = identity.max_requests
        if limit is not None and self._num_requests_of[identity] >= limit:
            raise too_many_requests(limit)
        self._num_requests_of[identity] += 1

    async def begin_request(self, identity: Identity) -> None:
        """Counts a request. Raises RequestError where the client may have no more."""
        self.count(identity)

    def end_requests(self, identity: Identity, count: int) -> None:
        """Counts so many requests no more."""
        self._num_requests_of[identity] -= count
        if self._num_requests_of[identity] <= 0:
            del self._num_requests_of[identity]

    async def cancel_elsewhere(self, request_id: str, identity: Identity | None) -> int:
        """Returns 0: there is no other front end."""
        del request_id, identity
        return 0
