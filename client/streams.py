"""Running `attribute` requests: a synchronous and an asyncio stream of steps.

A stream that may be resumed calls the server again after a break, and goes on with the step that has not arrived.
`parts` holds what has arrived; `many` has the streams of many texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from typing_extensions import Self

from .errors import CancelledError, SidelightError, from_rpc_error
from .parts import AnswerParts
from .results import Attribution, Started, Step, Unit
from .resumption import Resumption

# What an asyncio call gives after its last response.
EOF: Any = vars(grpc.aio)["EOF"]  # grpc's stubs leave it out

# The details of the status that gRPC gives a call by itself where a message cannot be sent.
_ERROR_OF_GRPC = "Internal error from Core"

# Seconds for which the server's status may come later than gRPC's own, and between two looks for it. gRPC reports only
# the first. It can send no more because the call has ended, so the server's status is already on its way in gRPC.
_STATUS_SECONDS, _STATUS_INTERVAL = 5.0, 0.002

# Begins a call with a request and a timeout in seconds. gRPC's synchronous and asyncio call objects have no common
# type, and its stubs have neither of the two.
BeginCall = Callable[[service_pb.AttributeRequest, float | None], Any]


class _StreamState:
    """What both kinds of streams share. The reader of the stream owns it."""

    def __init__(self, begin: BeginCall, request: service_pb.AttributeRequest, resumption: Resumption) -> None:
        self._begin = begin
        self._resumption = resumption
        self._parts = AnswerParts(request)
        self._cancelled = False
        self._call = begin(request, resumption.remaining())

    def cancel(self) -> None:
        """Cancels the request. The server stops within one step. Reading further raises CancelledError."""
        self._cancelled = True
        self._call.cancel()

    def _add_response(self, response: service_pb.AttributeResponse) -> None:
        try:
            self._parts.add(response)
        except SidelightError:
            self.cancel()
            raise
        self._resumption.note_progress()

    def _begin_again(self) -> None:
        """Calls the server again. Raises SidelightError if the stream was cancelled, or has no time left."""
        if not self._cancelled:
            self._call = self._begin(self._parts.next_request(), self._resumption.remaining())
        if self._cancelled:  # meanwhile, by another thread
            self._call.cancel()
            raise CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED)


class AttributionStream(_StreamState, Iterator[Step]):
    """A running `attribute` request. Iterate over its steps as they arrive, or call `result()` for everything.

    A `with` block cancels the request if the block is left early. The stream keeps its steps for `result()`.
    """

    def __init__(self, begin: BeginCall, request: service_pb.AttributeRequest, resumption: Resumption) -> None:
        self._ended = threading.Event()  # set by `cancel`, which ends a pause between two calls
        super().__init__(begin, request, resumption)

    def cancel(self) -> None:
        """Cancels the request. The server stops within one step. Reading further raises CancelledError."""
        super().cancel()
        self._ended.set()

    @property
    def started(self) -> Started:
        """The header of the stream. Waits until the header arrives. Raises SidelightError."""
        while self._parts.header is None and self._read():
            pass
        return self._parts.require_header()

    def result(self) -> Attribution:
        """Reads the stream to its end and returns the result, with the steps read before too. Raises SidelightError."""
        while self._parts.finished is None and self._read():
            pass
        return self._parts.collect()

    def _read(self) -> bool:
        """Reads the next response, or calls the server again. Returns False at the end of the stream."""
        try:
            self._add_response(next(self._call))
        except StopIteration:
            return False
        except grpc.RpcError as error:
            if self._parts.finished is not None:
                return False
            delay = self._resumption.next_delay(from_rpc_error(error))
            self._ended.wait(delay)
            self._begin_again()
        return True

    def units(self) -> Generator[Unit, None, None]:
        """Yields the units of the target as they arrive, of a request with a grouping. Raises SidelightError."""
        while (unit := self._parts.pop_unit()) is not None or self._read():
            if unit is not None:
                yield unit

    def __next__(self) -> Step:
        while (step := self._parts.pop_step()) is None:
            if not self._read():
                raise StopIteration
        return step

    def _ipython_display_(self) -> None:
        """What Jupyter does with a stream at the end of a cell: shows the steps as they arrive, then the result.

        Raises SidelightError.
        """
        from .notebook.live import LiveDisplay

        display = LiveDisplay(self.started)
        for part in self if self.started.grouping == "token" else self.units():
            display.add(part)
        display.finish(self.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncAttributionStream(_StreamState, AsyncIterator[Step]):
    """A running `attribute` request. Iterate over its steps with `async for`, or await `result()` for everything.

    An `async with` block cancels the request if the block is left early. The stream keeps its steps for `result()`.
    """

    async def started(self) -> Started:
        """The header; waits for it. Raises SidelightError."""
        while self._parts.header is None and await self._read():
            pass
        return self._parts.require_header()

    async def result(self) -> Attribution:
        """Reads the stream to its end and returns the result, with the steps read before too. Raises SidelightError."""
        while self._parts.finished is None and await self._read():
            pass
        return self._parts.collect()

    async def _read(self) -> bool:
        """Reads the next response, or calls the server again. Returns False at the end of the stream."""
        try:
            response = await read_response(self._call, lambda: self._cancelled)
        except SidelightError as error:
            if self._parts.finished is not None:
                return False
            await asyncio.sleep(self._resumption.next_delay(error))
            self._begin_again()
            return True
        if response is None:
            return False
        self._add_response(response)
        return True

    async def units(self) -> AsyncGenerator[Unit, None]:
        """Yields the units of the target as they arrive, of a request with a grouping. Raises SidelightError."""
        while (unit := self._parts.pop_unit()) is not None or await self._read():
            if unit is not None:
                yield unit

    async def __anext__(self) -> Step:
        while (step := self._parts.pop_step()) is None:
            if not await self._read():
                raise StopAsyncIteration
        return step

    async def show(self) -> Attribution:
        """Shows the steps in a notebook as they arrive, then the result, and returns the result. Raises SidelightError.

        Jupyter shows a synchronous stream by itself, but cannot wait for this one.
        """
        from .notebook.live import LiveDisplay

        started = await self.started()
        display = LiveDisplay(started)
        async for part in self if started.grouping == "token" else self.units():
            display.add(part)
        result = await self.result()
        display.finish(result)
        return result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


def begin_sending(begin: Callable[[Iterator[Any]], Any], requests: SimpleQueue[Any]) -> Any:
    """Begins a synchronous call that sends what comes into a queue, up to a None. Returns the call.

    A thread of gRPC waits for the queue. The end of the call ends this thread. The thread refers to the queue and not
    to the call: where nobody refers to the call any more, gRPC cancels the call.
    """
    call = begin(iter(requests.get, None))
    if not call.add_callback(lambda: requests.put(None)):  # the call has ended already
        requests.put(None)
    return call


class DuplexCall:
    """An asyncio call on which both sides send messages. A call that has ended drops what is sent.

    Where the server ends a call while a message is sent, gRPC sets an internal error of its own as the call's status,
    before the server's status or after it. This class keeps the server's status, and returns all responses before it.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        # Not call.read(): after an internal error of gRPC it would leave out the responses that have arrived.
        self._responses = aiter(call)
        self._status: grpc.aio.AioRpcError | None = None  # the server's, where it was the first
        call.add_done_callback(self._keep_status)

    def _keep_status(self, call: Any) -> None:
        """Keeps the first status of the call, unless it is gRPC's own error. gRPC does not report a second status."""
        try:
            _error_of(call).send(None)  # needs no event loop, as the status is there
        except StopIteration as stop:
            if not _is_of_grpc(stop.value):
                self._status = stop.value

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._call.done()

    def cancelled(self) -> bool:
        """Whether the call was cancelled, by either side."""
        return self._call.cancelled()

    def cancel(self) -> None:
        """Cancels the call."""
        self._call.cancel()

    async def code(self) -> grpc.StatusCode:
        """Returns the code of the status."""
        return await self._call.code()

    async def details(self) -> str:
        """Returns the text of the status."""
        return await self._call.details()

    async def initial_metadata(self) -> Any:
        """Returns the metadata of the response's headers."""
        return await self._call.initial_metadata()

    async def trailing_metadata(self) -> Any:
        """Returns the metadata of the status."""
        return await self._call.trailing_metadata()

    async def write(self, message: Any) -> None:
        """Sends a message."""
        with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
            await self._call.write(message)

    async def done_writing(self) -> None:
        """Says that nothing more is sent."""
        with contextlib.suppress(grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def read(self) -> Any:
        """Returns the next response; EOF at the end of a call without an error. Raises gRPC's error."""
        with contextlib.suppress(StopAsyncIteration, grpc.RpcError):
            return await anext(self._responses)
        error = await self._find_status()
        if error.code() is not grpc.StatusCode.OK:
            raise error
        return EOF

    async def _find_status(self) -> grpc.aio.AioRpcError:
        """Returns the server's status, of a call that has a status. Where none comes, returns gRPC's own error."""
        deadline = time.monotonic() + _STATUS_SECONDS
        while self._status is None:
            error = await _error_of(self._call)
            if not _is_of_grpc(error) or time.monotonic() > deadline:
                self._status = error
            else:
                await asyncio.sleep(_STATUS_INTERVAL)
        return self._status


def _is_of_grpc(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _ERROR_OF_GRPC


async def read_response(call: Any, is_cancelled: Callable[[], bool]) -> Any:
    """Returns the next response of an asyncio call; None at its end.

    `is_cancelled` says whether this client has cancelled the call. Raises SidelightError; and asyncio's CancelledError
    where the task that reads is cancelled, not the call.
    """
    try:
        response = await call.read()
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    except asyncio.CancelledError:
        # gRPC raises this too where the server has ended the call with CANCELLED. Then there are details.
        if call.done() and await call.trailing_metadata():
            raise from_rpc_error(await _error_of(call)) from None
        if not is_cancelled():  # the task that reads was cancelled, not this stream
            raise
        raise CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED) from None
    return None if response is EOF else response


async def _error_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns the error that gRPC would raise for the status of a call that has ended."""
    return grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details()
    )
