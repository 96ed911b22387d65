"""The two clients of a Sidelight server: `Client` is synchronous, `AsyncClient` is for asyncio.

This module makes the calls. `connection` opens the connection, `streams` and `follow` hold the running requests, and
`converters` the messages.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

import grpc
from grpc_health.v1.health_pb2_grpc import HealthStub
from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1.attribution_service_pb2_grpc import AttributionServiceStub
from typing_extensions import Self, Unpack

from . import converters
from .alignments import Alignment, Pair
from .connection import Connection, ConnectionOptions
from .errors import CancelledError, from_rpc_error
from .follow import AsyncFollowStream, FollowOptions, FollowStream, build_follow_start
from .many import (
    AlignmentManyStream,
    AsyncAlignmentManyStream,
    AsyncAttributionManyStream,
    AttributionManyStream,
)
from .many_state import DEFAULT_RUNNING, AlignmentManyState, AttributionManyState, ManySource, OnStep
from .models import Model
from .parameters import Source
from .request import (
    AlignOptions,
    AttributeOptions,
    build_align_request,
    build_attribute_request,
    build_cancel_request,
    build_get_model_request,
    build_health_request,
    build_resumption,
    validate_timeout,
)
from .streams import AsyncAttributionStream, AttributionStream

Response = TypeVar("Response")


class Client:
    """A connection to a server, for synchronous programs. Several threads may share one client.

    The client connects at its first call. A `with` block closes the connection at its end.
    """

    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        """Creates a client, without connecting.

        Args:
            address: "HOST:PORT", or another form that gRPC knows, such as "unix:/run/sidelight.sock"; None: that of the
                environment, or else "127.0.0.1:50051".
            **options: See `ConnectionOptions`.

        Raises:
            InvalidArgumentError: An argument is not of its type, or a file is wrong.
        """
        connection = Connection(address, options)
        self._channel = connection.open()
        self._stub = connection.add_metadata(AttributionServiceStub(self._channel))
        self._health: Any = HealthStub(self._channel)  # which needs no token
        self._closed = False
        self._streams: WeakSet[AttributionManyStream | AlignmentManyStream] = (
            WeakSet()
        )  # they have threads of their own
        self._lock = threading.Lock()  # of `_streams`

    def attribute(self, source: Source, **options: Unpack[AttributeOptions]) -> AttributionStream:
        """Has the server write the target of a source, or read a given target, and streams the attention of each token.

        Args:
            source: A text, token ids, or the messages of a chat.
            **options: See `AttributeOptions`.

        Raises:
            InvalidArgumentError: The client refuses the request without sending it. All other errors are raised while
                the stream is read.
            CancelledError: The client is closed.
        """
        request, resumption = build_attribute_request(source, options), build_resumption(options)

        def begin(request: service_pb.AttributeRequest, timeout: float | None) -> Any:
            _check_open(self._closed)
            return self._stub.Attribute(request, timeout=timeout)

        return AttributionStream(begin, request, resumption)

    def attribute_many(
        self,
        sources: Iterable[ManySource],
        *,
        max_running: int = DEFAULT_RUNNING,
        ordered: bool = True,
        on_step: OnStep | None = None,
        **options: Unpack[AttributeOptions],
    ) -> AttributionManyStream:
        """Does what `attribute` does for many sources over one stream: the quick way for many short texts.

        Args:
            sources: The sources. A source with options of its own is a tuple of the source and a dict of options, which
                come before `options`. A thread takes a source when it can send it.
            max_running: How many texts the server works on at the same time, at most.
            ordered: Whether results come in the order of the sources. Otherwise they come as texts end.
            on_step: Called with the index of a source and a step, as soon as the step arrives.
            **options: See `AttributeOptions`. `timeout` is for each text, `resume` for the stream. A `request_id` is
                the beginning of all ids: the index of the source follows.

        Raises:
            InvalidArgumentError: An option is wrong. What is wrong with a single source is in the source's result.
        """
        state = AttributionManyState(options, max_running=max_running, ordered=ordered, on_step=on_step)

        stream = AttributionManyStream(self._begin_many, sources, state)
        with self._lock:
            self._streams.add(stream)
        return stream

    def align(self, source: str, target: str | None = None, **options: Unpack[AlignOptions]) -> Alignment:
        """Links the words of a source and its target, and carries the markup of the source over to the target.

        Args:
            source: The source, with its markup if `markup` says so.
            target: The target; None: the model writes it.
            **options: See `AlignOptions`.

        Raises SidelightError.
        """
        request, seconds = build_align_request(source, target, options), validate_timeout(options.get("timeout"))
        return converters.parse_alignment(self._call(lambda: self._stub.Align(request, timeout=seconds)))

    def align_many(
        self,
        pairs: Iterable[Pair],
        *,
        max_running: int = DEFAULT_RUNNING,
        ordered: bool = True,
        resume: int = 0,
        **options: Unpack[AlignOptions],
    ) -> AlignmentManyStream:
        """Does what `align` does for many pairs over one stream. Arguments and errors are those of `attribute_many`.

        `pairs` are (source, target). A pair with options of its own is (source, target, options). For the other options
        see `AlignOptions`.
        """
        state = AlignmentManyState(options, max_running=max_running, ordered=ordered, resume=resume)
        stream = AlignmentManyStream(self._begin_many, pairs, state)
        with self._lock:
            self._streams.add(stream)
        return stream

    def _begin_many(self, requests: Iterator[service_pb.AttributeManyRequest]) -> Any:
        _check_open(self._closed)
        return self._stub.AttributeMany(requests)

    def cancel_attribution(self, request_id: str, *, timeout: float | None = None) -> int:
        """Cancels the requests of an id, whichever client has sent them. Returns how many there were.

        Where tokens or certificates name clients, only those of this client's own name. Raises NotFoundError if there
        is none.
        """
        request, seconds = build_cancel_request(request_id), validate_timeout(timeout)
        return self._call(lambda: self._stub.CancelAttribution(request, timeout=seconds)).cancelled

    def follow(self, **options: Unpack[FollowOptions]) -> FollowStream:
        """Opens a stream whose source grows, and whose target the caller's own decoder writes, or the server.

        Args:
            **options: See `FollowOptions`.

        Raises:
            InvalidArgumentError: The client refuses the options without sending them.
            CancelledError: The client is closed.
        """
        start = build_follow_start(options)
        timeout = validate_timeout(options.get("timeout"))
        _check_open(self._closed)
        return FollowStream(lambda requests: self._stub.Follow(requests, timeout=timeout), start)

    def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """Describes a loaded model; without a name, the default model. Raises SidelightError."""
        request, seconds = build_get_model_request(name), validate_timeout(timeout)
        return converters.parse_model(self._call(lambda: self._stub.GetModel(request, timeout=seconds)).model)

    def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """Lists all loaded models, in the order of their names. `timeout` is for each page. Raises SidelightError."""
        models: list[Model] = []
        request, seconds = service_pb.ListModelsRequest(), validate_timeout(timeout)
        while True:
            page = self._call(lambda: self._stub.ListModels(request, timeout=seconds))
            models += [converters.parse_model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def check_health(self, name: str = "", *, timeout: float | None = None) -> bool:
        """Returns whether a model or a service of gRPC serves; without a name, the server. Raises SidelightError."""
        request, seconds = build_health_request(name), validate_timeout(timeout)
        return converters.parse_health(self._call(lambda: self._health.Check(request, timeout=seconds)))

    def close(self) -> None:
        """Closes the connection and cancels the running streams."""
        self._closed = True
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()
        self._channel.close()

    def _call(self, call: Callable[[], Response]) -> Response:
        """Makes a unary call and returns its response. Raises SidelightError."""
        _check_open(self._closed)
        try:
            return call()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """A connection to a server, for asyncio programs: `Client` with `await`.

    Create it in the event loop that uses it. An `async with` block closes the connection at its end.
    """

    def __init__(self, address: str | None = None, **options: Unpack[ConnectionOptions]) -> None:
        """Creates a client, without connecting. The arguments and errors are those of `Client`."""
        connection = Connection(address, options)
        self._channel = connection.open_async()
        self._stub = connection.add_metadata(AttributionServiceStub(self._channel))
        self._health: Any = HealthStub(self._channel)  # which needs no token
        self._closed = False
        self._streams: WeakSet[
            AsyncAttributionStream | AsyncAttributionManyStream | AsyncAlignmentManyStream | AsyncFollowStream
        ] = WeakSet()

    def attribute(self, source: Source, **options: Unpack[AttributeOptions]) -> AsyncAttributionStream:
        """Does what `Client.attribute` does. Iterate over the stream with `async for`."""
        request, resumption = build_attribute_request(source, options), build_resumption(options)

        def begin(request: service_pb.AttributeRequest, timeout: float | None) -> Any:
            _check_open(self._closed)
            return self._stub.Attribute(request, timeout=timeout)

        stream = AsyncAttributionStream(begin, request, resumption)
        self._streams.add(stream)
        return stream

    def attribute_many(
        self,
        sources: Iterable[ManySource] | AsyncIterable[ManySource],
        *,
        max_running: int = DEFAULT_RUNNING,
        ordered: bool = True,
        on_step: OnStep | None = None,
        **options: Unpack[AttributeOptions],
    ) -> AsyncAttributionManyStream:
        """Does what `Client.attribute_many` does. Iterate over the results with `async for`.

        The sources may come from an asynchronous iterator. Results come while the client waits for the next source.
        """
        state = AttributionManyState(options, max_running=max_running, ordered=ordered, on_step=on_step)
        _check_open(self._closed)

        def begin() -> Any:
            return self._stub.AttributeMany()

        stream = AsyncAttributionManyStream(begin, sources, state)
        self._streams.add(stream)
        return stream

    async def align(self, source: str, target: str | None = None, **options: Unpack[AlignOptions]) -> Alignment:
        """Does what `Client.align` does."""
        request, seconds = build_align_request(source, target, options), validate_timeout(options.get("timeout"))
        return converters.parse_alignment(await self._call(lambda: self._stub.Align(request, timeout=seconds)))

    def align_many(
        self,
        pairs: Iterable[Pair] | AsyncIterable[Pair],
        *,
        max_running: int = DEFAULT_RUNNING,
        ordered: bool = True,
        resume: int = 0,
        **options: Unpack[AlignOptions],
    ) -> AsyncAlignmentManyStream:
        """Does what `Client.align_many` does. Iterate over the results with `async for`."""
        state = AlignmentManyState(options, max_running=max_running, ordered=ordered, resume=resume)
        _check_open(self._closed)
        stream = AsyncAlignmentManyStream(lambda: self._stub.AttributeMany(), pairs, state)
        self._streams.add(stream)
        return stream

    async def cancel_attribution(self, request_id: str, *, timeout: float | None = None) -> int:
        """Does what `Client.cancel_attribution` does."""
        request, seconds = build_cancel_request(request_id), validate_timeout(timeout)
        response = await self._call(lambda: self._stub.CancelAttribution(request, timeout=seconds))
        return response.cancelled

    def follow(self, **options: Unpack[FollowOptions]) -> AsyncFollowStream:
        """Does what `Client.follow` does."""
        start = build_follow_start(options)
        timeout = validate_timeout(options.get("timeout"))
        _check_open(self._closed)
        stream = AsyncFollowStream(self._stub.Follow(timeout=timeout), start)
        self._streams.add(stream)
        return stream

    async def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """Does what `Client.get_model` does."""
        request, seconds = build_get_model_request(name), validate_timeout(timeout)
        response = await self._call(lambda: self._stub.GetModel(request, timeout=seconds))
        return converters.parse_model(response.model)

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """Does what `Client.list_models` does."""
        models: list[Model] = []
        request, seconds = service_pb.ListModelsRequest(), validate_timeout(timeout)
        while True:
            page = await self._call(lambda: self._stub.ListModels(request, timeout=seconds))
            models += [converters.parse_model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def check_health(self, name: str = "", *, timeout: float | None = None) -> bool:
        """Does what `Client.check_health` does."""
        request, seconds = build_health_request(name), validate_timeout(timeout)
        return converters.parse_health(await self._call(lambda: self._health.Check(request, timeout=seconds)))

    async def close(self) -> None:
        """Closes the connection and cancels the running streams."""
        self._closed = True
        # Each stream is cancelled on its own, and its reader raises this package's CancelledError. If only the channel
        # were closed, the reader could not tell this from a cancellation of its own task.
        for stream in list(self._streams):
            stream.cancel()
        await self._channel.close()

    async def _call(self, call: Callable[[], Awaitable[Response]]) -> Response:
        """Makes a unary call and returns its response. Raises SidelightError."""
        _check_open(self._closed)
        try:
            return await call()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _check_open(closed: bool) -> None:
    if closed:
        raise CancelledError("the client is closed", grpc.StatusCode.CANCELLED)
