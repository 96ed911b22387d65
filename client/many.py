"""Streams of many texts: synchronous and asyncio. `many_state` has the texts; this module has the call.

A stream opens its call with its first text. After a break it begins a new call with what has not arrived, as often as
the option `resume` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from typing_extensions import Self

from .errors import CancelledError, SidelightError, from_rpc_error
from .many_state import ManyResult, ManySource, ManyState
from .streams import EOF, read_response

_Requests = Iterator[service_pb.AttributeManyRequest]


def _cut_off() -> SidelightError:
    return SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)


def _cancelled() -> CancelledError:
    return CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED)


class AttributionManyStream(Iterator[ManyResult]):
    """Many running texts. Iterate over their results.

    A text that fails has its error in its result, and the others go on. A `with` block cancels all texts if the block
    is left early.
    """

    def __init__(self, begin: Callable[[_Requests], Any], sources: Iterable[ManySource], state: ManyState) -> None:
        """`begin` begins a call that sends what an iterator gives."""
        self._begin = begin
        self._sources = iter(sources)
        self._state = state
        self._call: Any = None
        self._requests: queue.SimpleQueue[service_pb.AttributeManyRequest | None] = queue.SimpleQueue()
        self._is_exhausted = False
        self._ended = threading.Event()  # set by `cancel`, which ends a pause between two calls

    def cancel(self) -> None:
        """Cancels all texts. Reading further raises CancelledError."""
        self._ended.set()
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()

    def cancel_text(self, index: int) -> None:
        """Cancels one text by its index. Its result has a CancelledError. Does nothing if the text does not run."""
        if (message := self._state.cancel_message(index)) is not None:
            self._requests.put(message)

    def __next__(self) -> ManyResult:
        while (result := self._state.pop_result()) is None:
            if self._ended.is_set():
                raise _cancelled()
            if not self._is_exhausted and self._state.has_room:
                self._send_next()
            elif self._state.num_running:
                self._receive()
            else:
                self._finish()
                raise StopIteration
        return result

    def _send_next(self) -> None:
        """Sends the next text, if there is one."""
        try:
            source = next(self._sources)
        except StopIteration:
            self._is_exhausted = True
            return
        is_idle = not self._state.num_running
        message = self._state.add(source)
        if message is None:
            return
        if self._call is None or (is_idle and not self._call.is_active()):  # a server may end an idle stream
            self._begin_call([message])
        else:
            self._requests.put(message)

    def _begin_call(self, messages: Sequence[service_pb.AttributeManyRequest]) -> None:
        self._requests.put(None)  # ends gRPC's thread that sends to the call before
        self._requests = queue.SimpleQueue()
        for message in messages:
            self._requests.put(message)
        self._call = self._begin(iter(self._requests.get, None))

    def _receive(self) -> None:
        """Reads the next message, or begins the stream again."""
        try:
            message = next(self._call)
        except StopIteration:
            raise _cut_off() from None
        except grpc.RpcError as rpc_error:
            self._begin_again(from_rpc_error(rpc_error))
            return
        try:
            self._state.receive(message)
        except BaseException:  # of `on_step`, too
            self.cancel()
            raise
        if (error := self._state.break_error) is not None:
            self._begin_again(error)

    def _begin_again(self, error: SidelightError) -> None:
        """Begins the stream again after an error. Raises the error if it may not."""
        self._requests.put(None)
        self._call.cancel()
        self._ended.wait(self._state.resumption.next_delay(error))
        if not self._ended.is_set():
            self._begin_call(self._state.next_messages())

    def _finish(self) -> None:
        """Closes the stream after its last text, once."""
        self._requests.put(None)
        call, self._call = self._call, None
        if call is not None:
            with contextlib.suppress(grpc.RpcError):
                for _ in call:
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class AsyncAttributionManyStream(AsyncIterator[ManyResult]):
    """Many running texts. Iterate over their results with `async for`.

    A text that fails has its error in its result, and the others go on. An `async with` block cancels all texts if the
    block is left early.
    """

    def __init__(
        self, begin: Callable[[], Any], sources: Iterable[ManySource] | AsyncIterable[ManySource], state: ManyState
    ) -> None:
        """`begin` begins a call."""
        self._begin = begin
        self._sources = sources
        self._state = state
        self._call: Any = None
        self._sender: asyncio.Task[None] | None = None  # sends the texts
        self._resender: asyncio.Task[None] | None = None  # sends the texts that run to a new call
        self._writing = asyncio.Lock()  # gRPC takes one message at a time
        self._has_room = asyncio.Event()
        self._has_changed = asyncio.Event()  # a text was added, or there are no more
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancels all texts. Reading further raises CancelledError."""
        self._is_cancelled = True
        for task in (self._sender, self._resender):
            if task is not None:
                task.cancel()
        if self._call is not None:
            self._call.cancel()
        self._has_changed.set()

    async def cancel_text(self, index: int) -> None:
        """Cancels one text by its index. Its result has a CancelledError. Does nothing if the text does not run."""
        async with self._writing:
            if (message := self._state.cancel_message(index)) is not None:
                await self._write(message)

    async def __anext__(self) -> ManyResult:
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all())
        while (result := self._state.pop_result()) is None:
            if self._is_cancelled:
                raise _cancelled()
            if self._state.num_running:
                await self._receive()
            elif self._sender.done():
                self._sender.result()  # raises what the sources have raised
                await self._finish()
                raise StopAsyncIteration
            else:
                self._has_changed.clear()
                await self._has_changed.wait()
        self._has_room.set()
        return result

    async def _send_all(self) -> None:
        """Sends texts as long as there are any, and as the stream has room."""
        try:
            if isinstance(self._sources, AsyncIterable):
                await self._wait_for_room()
                async for source in self._sources:
                    await self._send(source)
                    await self._wait_for_room()
            else:
                for source in self._sources:
                    await self._wait_for_room()
                    await self._send(source)
        finally:
            self._has_changed.set()

    async def _wait_for_room(self) -> None:
        while not self._state.has_room:
            self._has_room.clear()
            await self._has_room.wait()

    async def _send(self, source: ManySource) -> None:
        async with self._writing:
            is_idle = not self._state.num_running
            message = self._state.add(source)
            if message is not None:
                if self._call is None or (is_idle and self._call.done()):  # a server may end an idle stream
                    self._call = self._begin()
                self._has_changed.set()
                await self._write(message)
        self._has_changed.set()

    async def _write(self, message: service_pb.AttributeManyRequest) -> None:
        # If the call is broken, the reader learns why. A text that was not sent counts as a running text.
        call = self._call
        try:
            await call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass
        except asyncio.CancelledError:
            if self._is_cancelled or not call.cancelled():  # this task was cancelled, not the call alone
                raise

    async def _receive(self) -> None:
        """Reads the next message, or begins the stream again."""
        try:
            message = await read_response(self._call, lambda: self._is_cancelled)
        except SidelightError as error:
            if self._is_cancelled:
                raise
            await self._begin_again(error)
            return
        try:
            if message is None:
                raise _cut_off()
            self._state.receive(message)
        except BaseException:  # of `on_step`, too
            self.cancel()
            raise
        self._has_room.set()
        if (error := self._state.break_error) is not None:
            await self._begin_again(error)

    async def _begin_again(self, error: SidelightError) -> None:
        """Begins the stream again after an error. Raises the error if it may not."""
        try:
            delay = self._state.resumption.next_delay(error)
        except SidelightError:
            self.cancel()
            raise
        self._call.cancel()
        await asyncio.sleep(delay)
        await self._writing.acquire()
        if self._is_cancelled:
            self._writing.release()
            raise _cancelled()
        self._call = self._begin()
        # In a task of its own: the server may take the last of them only after its first answers are read.
        self._resender = asyncio.create_task(self._resend(self._state.next_messages()))

    async def _resend(self, messages: Sequence[service_pb.AttributeManyRequest]) -> None:
        """Sends messages, and then lets others send."""
        try:
            for message in messages:
                await self._write(message)
        finally:
            self._writing.release()

    async def _finish(self) -> None:
        """Closes the stream after its last text, once."""
        call, self._call = self._call, None
        if call is not None:
            with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                await call.done_writing()
                while await call.read() is not EOF:
                    pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        tasks = [task for task in (self._sender, self._resender) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
