"""Clients of a Sidelight server: a synchronous and an asyncio one, alike but for `await`.

They know how to call and what may go wrong; how things look on the wire is `converters`' business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, NoReturn, TypedDict, TypeVar

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from sidelight.v1.attribution_service_pb2_grpc import AttributionServiceStub
from typing_extensions import Unpack

from . import converters
from .errors import SidelightError, from_rpc_error, invalid
from .options import Capture, Decoding, Score, Source
from .results import Attribution, Model, Numbers, Started, Step, collect

DEFAULT_ADDRESS = "127.0.0.1:50051"

# A step of a large model with everything unreduced passes gRPC's limit of 4 MiB for what is received.
_OPTIONS: tuple[tuple[str, Any], ...] = (("grpc.max_receive_message_length", -1),)

Call = TypeVar("Call")


class Options(TypedDict, total=False):
    """The keyword arguments of `attribute`, all optional.

    - target: The target, if it is known: text or token ids. Otherwise the model writes it.
    - model: A loaded model's name; the server's default without one.
    - source_language, target_language: Codes, for models that need them.
    - capture: What to keep of the attention; everything of the model's main kind without one.
    - scores: Numbers to get with each step.
    - decoding: How the target is written; as the model's generation config says without it.
    - prefix: What the target starts with: text or token ids.
    - request_id: For errors and the server's log; the server makes one without it.
    - resume_at: The first step wanted, after a broken stream.
    - score_top_p: The p of the score "top_p_size"; 0.9 without it.
    - timeout: In seconds, for the whole stream; no limit without it.
    """

    target: str | Sequence[int] | None
    model: str
    source_language: str
    target_language: str
    capture: Capture | None
    scores: Sequence[Score]
    decoding: Decoding | None
    prefix: str | Sequence[int] | None
    request_id: str
    resume_at: int
    score_top_p: float | None
    timeout: float | None


def _request(source: Source, options: Options) -> service_pb.AttributeRequest:
    """The request of an `attribute` call. Raises InvalidArgumentError for what no server needs to see."""
    _checked(options.get("timeout"))
    target, decoding = options.get("target"), options.get("decoding")
    prefix, capture = options.get("prefix"), options.get("capture")
    if target is not None and decoding is not None:
        raise invalid("decoding", "goes without a target: a given target is not decoded")
    try:
        request = service_pb.AttributeRequest(
            request_id=options.get("request_id", ""),
            model=options.get("model", ""),
            source=converters.text_message(source),
            source_language=options.get("source_language", ""),
            target_language=options.get("target_language", ""),
            scores=converters.score_numbers(options.get("scores", ())),
            resume_at=options.get("resume_at", 0),
            score_top_p=options.get("score_top_p"),
        )
        if target is not None:
            request.given.CopyFrom(converters.text_message(target))
        elif decoding is not None:
            request.decoding.CopyFrom(converters.decoding_message(decoding))
        if prefix is not None:
            request.prefix.CopyFrom(converters.text_message(prefix))
        if capture is not None:
            request.capture.CopyFrom(converters.capture_message(capture))
    except (ValueError, TypeError, KeyError) as error:
        field, _, rest = str(error).partition(": ")
        raise invalid(field if rest else "", rest or str(error)) from error
    return request


def _checked(timeout: float | None) -> float | None:
    if timeout is not None and not timeout > 0:
        raise invalid("timeout", "must be above 0 seconds")
    return timeout


class _Stream(Generic[Call]):
    """What both streams have in common: the parts of an answer, put in their places as they come."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._started: Started | None = None
        self._encoder_self: list[Numbers] = []
        self._steps: list[Step] = []
        self._finished: service_pb.Finished | None = None

    def _take(self, response: service_pb.AttributeResponse) -> list[Step]:
        """Puts one response in its place; returns the steps in it."""
        if response.HasField("started"):
            self._started = converters.started(response.started)
        elif response.HasField("encoder_self"):
            self._encoder_self.append(converters.numbers(response.encoder_self.attention))
        elif response.HasField("finished"):
            self._finished = response.finished
        if self._started is None:
            return []
        steps = [converters.step(message, self._started) for message in response.steps.steps]
        self._steps += steps
        return steps

    def _result(self) -> Attribution:
        if self._started is None or self._finished is None:
            raise SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)
        return collect(
            self._started,
            self._encoder_self,
            self._steps,
            self._finished.text,
            converters.stop_reason(self._finished),
            converters.usage(self._finished.usage),
        )


class AttributionStream(_Stream[Any]):
    """A running attribution. Iterate for steps as they arrive, or ask for the whole `result()`.

    Used in a `with` block, it is cancelled when the block is left early.
    """

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        self._iterator = self._run()

    @property
    def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._started is None and self._read() is not None:
            pass
        if self._started is None:
            raise SidelightError("the stream was cut off before its header", grpc.StatusCode.DATA_LOSS)
        return self._started

    def result(self) -> Attribution:
        """Reads to the end and puts everything together, steps that were read before too. Raises SidelightError."""
        while self._read() is not None:
            pass
        return self._result()

    def cancel(self) -> None:
        """Gives the request up: the server stops within one step."""
        self._call.cancel()

    def _read(self) -> list[Step] | None:
        """The steps of the next response; None at the end."""
        try:
            return self._take(next(self._call))
        except StopIteration:
            return None
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def _run(self) -> Iterator[Step]:
        taken = 0
        while True:
            # Steps that came while somebody waited for the header are here already.
            while taken < len(self._steps):
                taken += 1
                yield self._steps[taken - 1]
            if self._read() is None:
                return

    def __iter__(self) -> Iterator[Step]:
        return self._iterator

    def __enter__(self) -> AttributionStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncAttributionStream(_Stream[Any]):
    """A running attribution. Iterate with `async for` for steps as they arrive, or await the whole `result()`.

    Used in an `async with` block, it is cancelled when the block is left early.
    """

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        self._iterator = self._run()

    async def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._started is None and await self._read() is not None:
            pass
        if self._started is None:
            raise SidelightError("the stream was cut off before its header", grpc.StatusCode.DATA_LOSS)
        return self._started

    async def result(self) -> Attribution:
        """Reads to the end and puts everything together, steps that were read before too. Raises SidelightError."""
        while await self._read() is not None:
            pass
        return self._result()

    def cancel(self) -> None:
        """Gives the request up: the server stops within one step."""
        self._call.cancel()

    async def _read(self) -> list[Step] | None:
        """The steps of the next response; None at the end."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        if not isinstance(response, service_pb.AttributeResponse):  # grpc.aio.EOF
            # A stream that failed ends here too; its status tells.
            code = await self._call.code()
            if code is not grpc.StatusCode.OK:
                await self._fail()
            return None
        return self._take(response)

    async def _fail(self) -> NoReturn:
        trailers = await self._call.trailing_metadata()
        details = await self._call.details()
        code = await self._call.code()
        raise from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)) from None

    async def _run(self) -> AsyncIterator[Step]:
        taken = 0
        while True:
            while taken < len(self._steps):
                taken += 1
                yield self._steps[taken - 1]
            if await self._read() is None:
                return

    def __aiter__(self) -> AsyncIterator[Step]:
        return self._iterator

    async def __aenter__(self) -> AsyncAttributionStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


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
        """
        arguments = (*_OPTIONS, *options)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=arguments)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=arguments)
        self._stub = AttributionServiceStub(self._channel)

    def attribute(self, source: Source, **options: Unpack[Options]) -> AttributionStream:
        """Writes a source's target, or takes the one given, and streams the attention of each token.

        Args:
            source: A text, token ids, or the messages of a chat.
            **options: See `Options`.

        Raises:
            InvalidArgumentError: For what needs no server to be told; all else is raised while the stream is read.
        """
        return AttributionStream(self._stub.Attribute(_request(source, options), timeout=options.get("timeout")))

    def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """A loaded model, described; the default one without a name. Raises SidelightError."""
        request = service_pb.GetModelRequest(name=name)
        return converters.model(_call(lambda: self._stub.GetModel(request, timeout=_checked(timeout))).model)

    def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """All loaded models, in the order of their names. Raises SidelightError."""
        models: list[Model] = []
        request = service_pb.ListModelsRequest()
        while True:
            page = _call(lambda: self._stub.ListModels(request, timeout=_checked(timeout)))
            models += [converters.model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    def close(self) -> None:
        """Closes the connection; running streams end."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Answer = TypeVar("Answer")


def _call(call: Callable[[], Answer]) -> Answer:
    """A unary call's answer. Raises SidelightError."""
    try:
        return call()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


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
        arguments = (*_OPTIONS, *options)
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=arguments)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=arguments)
        self._stub = AttributionServiceStub(self._channel)

    def attribute(self, source: Source, **options: Unpack[Options]) -> AsyncAttributionStream:
        """As `Client.attribute`; what comes back is iterated with `async for`."""
        return AsyncAttributionStream(self._stub.Attribute(_request(source, options), timeout=options.get("timeout")))

    async def get_model(self, name: str = "", *, timeout: float | None = None) -> Model:
        """As `Client.get_model`."""
        try:
            answer = await self._stub.GetModel(service_pb.GetModelRequest(name=name), timeout=_checked(timeout))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return converters.model(answer.model)

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """As `Client.list_models`."""
        models: list[Model] = []
        request = service_pb.ListModelsRequest()
        while True:
            try:
                page = await self._stub.ListModels(request, timeout=_checked(timeout))
            except grpc.RpcError as error:
                raise from_rpc_error(error) from None
            models += [converters.model(message) for message in page.models]
            if not page.next_page_token:
                return models
            request.page_token = page.next_page_token

    async def close(self) -> None:
        """Closes the connection; running streams end."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
