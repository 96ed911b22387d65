"""Clients of a Sidelight server: a synchronous and an asyncio one, alike but for `await`.

They know how to connect and to call; what streams give is in `streams`, how it looks on the wire in `converters`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1.attribution_service_pb2_grpc import AttributionServiceStub
from typing_extensions import Self, Unpack

from . import converters
from .errors import CancelledError, from_rpc_error
from .parameters import Source
from .request import Options, attribute_request, checked_timeout, get_model_request
from .results import Model
from .streams import AsyncAttributionStream, AttributionStream
from .validation import check_value

DEFAULT_ADDRESS = "127.0.0.1:50051"

# A step of a large model with everything unreduced passes gRPC's limit of 4 MiB for what is received.
_OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.max_receive_message_length", -1),)

Answer = TypeVar("Answer")


class Client:
    """A connection to a server, for synchronous programs. Safe to use from several threads.

    Connecting happens with the first call. In a `with` block, the connection is closed at the end.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """Makes a client.

        Args:
            address: "HOST:PORT", or another form that gRPC knows, such as "unix:/run/sidelight.sock".
            credentials: For TLS; without them the connection is in the clear.
            options: Further gRPC channel arguments.

        Raises:
            InvalidArgumentError: An argument is not of its type.
        """
        _check_connection(address, credentials, options)
        arguments = (*_OPTIONS, *options)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=arguments)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=arguments)
        self._stub = AttributionServiceStub(self._channel)
        self._closed = False

    def attribute(self, source: Source, **options: Unpack[Options]) -> AttributionStream:
        """Writes a source's target, or takes the one given, and streams the attention of each token.

        Args:
            source: A text, token ids, or the messages of a chat.
            **options: See `Options`.

        Raises:
            InvalidArgumentError: For what needs no server to be told; all else is raised while the stream is read.
            CancelledError: The client is closed.
        """
        request = attribute_request(source, options)
        timeout = checked_timeout(options.get("timeout"))
        _check_open(self._closed)
        return AttributionStream(self._stub.Attribute(request, timeout=timeout))

    def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """A loaded model, described; the default one without a name. Raises SidelightError."""
        request, seconds = get_model_request(name), checked_timeout(timeout)
        return converters.model(self._answer(lambda: self._stub.GetModel(request, timeout=seconds)).model)

    def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """All loaded models, in the order of their names. `timeout` is for each page. Raises SidelightError."""
        models: list[Model] = []
        request, seconds = service_pb.ListModelsRequest(), checked_timeout(timeout)
        while True:
            page = self._answer(lambda: self._stub.ListModels(request, timeout=seconds))
            models += [converters.model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def close(self) -> None:
        """Closes the connection; running streams are cancelled."""
        self._closed = True
        self._channel.close()

    def _answer(self, call: Callable[[], Answer]) -> Answer:
        """A unary call's answer. Raises SidelightError."""
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

    Made in the event loop that uses it. In an `async with` block, the connection is closed at the end.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        """As `Client` has them."""
        _check_connection(address, credentials, options)
        arguments = (*_OPTIONS, *options)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=arguments)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=arguments)
        self._stub = AttributionServiceStub(self._channel)
        self._closed = False
        self._streams: WeakSet[AsyncAttributionStream] = WeakSet()

    def attribute(self, source: Source, **options: Unpack[Options]) -> AsyncAttributionStream:
        """As `Client.attribute`; what comes back is iterated with `async for`."""
        request = attribute_request(source, options)
        timeout = checked_timeout(options.get("timeout"))
        _check_open(self._closed)
        stream = AsyncAttributionStream(self._stub.Attribute(request, timeout=timeout))
        self._streams.add(stream)
        return stream

    async def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """As `Client.get_model`."""
        request, seconds = get_model_request(name), checked_timeout(timeout)
        answer = await self._answer(lambda: self._stub.GetModel(request, timeout=seconds))
        return converters.model(answer.model)

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """As `Client.list_models`."""
        models: list[Model] = []
        request, seconds = service_pb.ListModelsRequest(), checked_timeout(timeout)
        while True:
            page = await self._answer(lambda: self._stub.ListModels(request, timeout=seconds))
            models += [converters.model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def close(self) -> None:
        """Closes the connection; running streams are cancelled."""
        self._closed = True
        # Told one by one, so that each knows it is the stream that ends, and not the task that reads it.
        for stream in list(self._streams):
            stream.cancel()
        await self._channel.close()

    async def _answer(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """A unary call's answer. Raises SidelightError."""
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


def _check_connection(address: str, credentials: grpc.ChannelCredentials | None, options: object) -> None:
    check_value(address, str, "address")
    with converters.blaming("address"):
        address.encode()  # gRPC's own error would be none of ours
    check_value(credentials, grpc.ChannelCredentials | None, "credentials")
    check_value(options, Sequence[tuple[str, Any]], "options")


def _check_open(closed: bool) -> None:
    if closed:
        raise CancelledError("the client is closed", grpc.StatusCode.CANCELLED)
