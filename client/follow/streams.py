"""Follow streams, synchronous and for asyncio. Events go out by methods, and come in by iteration.

`request` builds the messages, and `converters` parses them.
"""

from __future__ import annotations

import asyncio
import queue
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from typing_extensions import Self

from .. import converters
from ..errors import InternalError, from_rpc_error, invalid_argument
from ..parameters import Source
from ..results import Started
from ..streams import DuplexCall, begin_sending, read_response
from .events import AwaitingSource, FollowEvent, StepCount
from .request import build_flush, build_source, build_source_done, build_take_back, build_target


class _FollowState:
    """What has arrived of a stream, and was not returned yet."""

    def __init__(self) -> None:
        self._call: Any = None
        self._cancelled = False
        self._is_complete = False  # whether the end was sent
        self._header: Started | None = None
        self._events: deque[FollowEvent] = deque()

    def cancel(self) -> None:
        """Cancels the stream. Reading further raises CancelledError."""
        self._cancelled = True
        self._call.cancel()

    def _check_complete(self, request: service_pb.FollowRequest | None) -> None:
        """Notes the end of what is sent, which is None. Raises InvalidArgumentError for an event after the end."""
        if request is None:
            self._is_complete = True
        elif self._is_complete:
            raise invalid_argument(request.WhichOneof("event") or "event", "comes after end()")

    def _add_response(self, response: service_pb.FollowResponse) -> None:
        """Stores the events of one response. Raises InternalError if they do not fit the contract."""
        try:
            self._events.extend(self._parse(response))
        except (ValueError, KeyError, IndexError) as error:
            self.cancel()
            message = f"the server's answer does not fit the contract: {error}"
            raise InternalError(message, grpc.StatusCode.INTERNAL) from error

    def _parse(self, response: service_pb.FollowResponse) -> Iterator[FollowEvent]:
        kind = response.WhichOneof("event")
        if kind == "started":
            self._header = converters.parse_started(response.started)
            yield self._header
        elif kind == "step_count":
            yield StepCount(response.step_count)
        elif kind == "awaiting_source":
            waiting = response.awaiting_source
            yield AwaitingSource(waiting.step_count, waiting.firm_source_tokens)
        elif kind == "finished":
            yield converters.parse_finished(response.finished)
        elif self._header is None:
            raise ValueError("the header is missing")
        elif kind == "encoder_self":
            yield converters.parse_encoder_self(response.encoder_self, self._header)
        else:
            for message in response.steps.steps:
                yield converters.parse_step(message, self._header)


class FollowStream(_FollowState, Iterator[FollowEvent]):
    """An open `follow` stream. Iterate over its events as they arrive; another thread may send meanwhile.

    A `with` block cancels the stream if the block is left early. After `end`, the methods that send raise
    InvalidArgumentError. If the stream has failed, what is sent is dropped, and the iteration raises the error.
    """

    def __init__(self, open_call: Callable[[Iterator[Any]], Any], start: service_pb.FollowRequest) -> None:
        """`open_call` makes the call of an iterator over its requests."""
        super().__init__()
        self._requests: queue.SimpleQueue[service_pb.FollowRequest | None] = queue.SimpleQueue()
        self._requests.put(start)
        self._call = begin_sending(open_call, self._requests)

    def add_source(self, source: Source) -> None:
        """Adds to the source. Pieces of text are joined as they are. Raises InvalidArgumentError."""
        self._send(build_source(source))

    def complete_source(self) -> None:
        """Says that no more source comes."""
        self._send(build_source_done())

    def add_target(self, target: str | Sequence[int]) -> None:
        """Adds to the target: each token becomes a step. Raises InvalidArgumentError.

        The last word of a text waits until more text comes after it, or for `flush`.
        """
        self._send(build_target(target))

    def flush(self) -> None:
        """Says that the last word of the target is complete."""
        self._send(build_flush())

    def take_back(self, count: int) -> None:
        """Removes so many tokens from the end of the target. Raises InvalidArgumentError."""
        self._send(build_take_back(count))

    def end(self) -> None:
        """Says that nothing more is sent. The stream's last event is `Finished`."""
        self._send(None)

    def _send(self, request: service_pb.FollowRequest | None) -> None:
        """Sends a message; None: the end. Raises InvalidArgumentError for a message after the end."""
        self._check_complete(request)
        self._requests.put(request)

    def __next__(self) -> FollowEvent:
        while not self._events:
            self._read()
        return self._events.popleft()

    def _read(self) -> None:
        """Reads the next response. Raises StopIteration at the end of the stream."""
        try:
            self._add_response(next(self._call))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncFollowStream(_FollowState, AsyncIterator[FollowEvent]):
    """An open `follow` stream. Iterate over its events with `async for`; another task may send meanwhile.

    An `async with` block cancels the stream if the block is left early. After `end`, the methods that send raise
    InvalidArgumentError. If the stream has failed, what is sent is dropped, and the iteration raises the error.
    """

    def __init__(self, call: Any, start: service_pb.FollowRequest) -> None:
        super().__init__()
        self._call = DuplexCall(call)
        self._start: service_pb.FollowRequest | None = start  # until it is sent
        self._lock = asyncio.Lock()  # gRPC takes one message at a time
        # The server waits for the first message only so long, whenever the caller sends or reads.
        self._opening = asyncio.create_task(self._send_start())

    async def add_source(self, source: Source) -> None:
        """Does what `FollowStream.add_source` does."""
        await self._send(build_source(source))

    async def complete_source(self) -> None:
        """Does what `FollowStream.complete_source` does."""
        await self._send(build_source_done())

    async def add_target(self, target: str | Sequence[int]) -> None:
        """Does what `FollowStream.add_target` does."""
        await self._send(build_target(target))

    async def flush(self) -> None:
        """Does what `FollowStream.flush` does."""
        await self._send(build_flush())

    async def take_back(self, count: int) -> None:
        """Does what `FollowStream.take_back` does."""
        await self._send(build_take_back(count))

    async def end(self) -> None:
        """Does what `FollowStream.end` does."""
        await self._send(None)

    async def _send(self, request: service_pb.FollowRequest | None) -> None:
        """Sends a message, after the first one; None: the end. Raises InvalidArgumentError for a message after the end.

        A stream that has ended takes nothing.
        """
        self._check_complete(request)
        await self._send_start()
        async with self._lock:
            if request is None:
                await self._call.done_writing()
            else:
                await self._call.write(request)

    async def _send_start(self) -> None:
        """Sends the first message, unless it is sent already."""
        async with self._lock:
            start, self._start = self._start, None
            if start is not None:
                await self._call.write(start)

    async def __anext__(self) -> FollowEvent:
        while not self._events:
            response = await read_response(self._call, lambda: self._cancelled)
            if response is None:
                raise StopAsyncIteration
            self._add_response(response)
        return self._events.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
