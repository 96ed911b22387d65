"""Streams of many texts: synchronous and asyncio. `many_state` has the texts; this module has the call.

A stream opens its call with its first text. After a break it begins a new call with what has not arrived, as often as
the option `resume` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic

import grpc
from sidelight.v1 import attribution_service_pb2 as service_pb
from typing_extensions import Self

from .alignments import ManyAlignment, Pair
from .errors import CancelledError, SidelightError, from_rpc_error
from .many_state import ManyResult, ManySource, ManyState, R, S
from .streams import EOF, DuplexCall, begin_sending, read_response

_Requests = Iterator[service_pb.AttributeManyRequest]


def _cut_off() -> SidelightError:
    return SidelightError("the stream was cut off before its end", grpc.StatusCode.DATA_LOSS)


def _cancelled() -> CancelledError:
    return CancelledError("the stream was cancelled", grpc.StatusCode.CANCELLED)


class _ManySender(Generic[S, R]):
    """Sends the texts of a synchronous stream, in a thread of its own: results must not wait for the next source.

    The thread refers to this object and not to the stream. So a stream that nobody refers to any more can end it.

    Attributes:
        changed: The lock of this object and of what is added to the texts. It is notified where a text was added or has
            ended. No code of the user runs while it is locked.
        call: The call; None before the first text.
        is_done: Whether no further text comes.
        is_cancelled: Whether the stream was cancelled.
        error: What the sources have raised, or the begin of a call.
    """

    def __init__(self, begin: Callable[[_Requests], Any], sources: Iterable[S], state: ManyState[S, R]) -> None:
        self.changed = threading.Condition()
        self.call: Any = None
        self.is_done = False
        self.is_cancelled = False
        self.error: BaseException | None = None
        self._begin = begin
        self._sources = iter(sources)
        self._state = state
        self._requests: queue.SimpleQueue[service_pb.AttributeManyRequest | None] = queue.SimpleQueue()

    def cancel(self) -> None:
        """Cancels the call, and ends the thread."""
        self.is_cancelled = True
        with self.changed:
            self.changed.notify_all()
        if self.call is not None:
            self.call.cancel()

    def run(self) -> None:
        """Sends texts as long as there are any, and as the stream has room."""
        try:
            while self._wait_for_room():
                self._send(next(self._sources))
        except StopIteration:
            pass
        except BaseException as error:  # the reader raises it
            self.error = error
        with self.changed:
            self.is_done = True
            self.changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Waits until one more text may run. Returns False if the stream was cancelled."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_cancelled or self._state.has_room)
            return not self.is_cancelled

    def _send(self, source: S) -> None:
        with self.changed:
            if self.is_cancelled:
                return
            is_idle = not self._state.num_running
            message = self._state.add(source)
            if message is not None:
                if self.call is None or (is_idle and not self.call.is_active()):  # a server may end an idle stream
                    self.begin_call([message])
                else:
                    self.put(message)
            self.changed.notify_all()

    def begin_call(self, messages: Sequence[service_pb.AttributeManyRequest]) -> None:
        """Begins a call with these messages. `changed` is locked."""
        self._requests = queue.SimpleQueue()
        for message in messages:
            self._requests.put(message)
        try:
            self.call = begin_sending(self._begin, self._requests)
        except BaseException:  # no text can run
            self.is_cancelled = True
            raise

    def put(self, message: service_pb.AttributeManyRequest | None) -> None:
        """Sends a message; None: the end."""
        self._requests.put(message)


class ManyStream(Iterator[R], Generic[S, R]):
    """Many running texts. Iterate over their results.

    A text that fails has its error in its result, and the others go on. A `with` block cancels all texts if the block
    is left early.
    """

    def __init__(self, begin: Callable[[_Requests], Any], sources: Iterable[S], state: ManyState[S, R]) -> None:
        """`begin` begins a call that sends what an iterator gives."""
        self._state = state
        self._sender = _ManySender(begin, sources, state)
        self._changed = self._sender.changed
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._sender.cancel).atexit = False

    def cancel(self) -> None:
        """Cancels all texts. Reading further raises CancelledError."""
        self._sender.cancel()

    def cancel_text(self, index: int) -> None:
        """Cancels one text by its index. Its result has a CancelledError. Does nothing if the text does not run."""
        with self._changed:
            if (message := self._state.cancel_message(index)) is not None:
                self._sender.put(message)

    def __next__(self) -> R:
        if self._thread is None:
            self._thread = threading.Thread(target=self._sender.run, name="sidelight-attribute-many", daemon=True)
            self._thread.start()
        while (result := self._await_result()) is None:
            self._receive()
        return result

    def _await_result(self) -> R | None:
        """Returns the next result; None if the server must send more first. Raises StopIteration at the end."""
        with self._changed:
            while (result := self._state.pop_result()) is None:
                if self._sender.is_cancelled:
                    raise self._sender.error or _cancelled()
                if self._state.num_running:
                    return None
                if self._sender.is_done:
                    break
                self._changed.wait()
            self._changed.notify_all()  # there is room for a text
        if result is None:
            if self._sender.error is not None:
                raise self._sender.error
            self._finish()
            raise StopIteration
        return result

    def _receive(self) -> None:
        """Reads the next message, or begins the stream again."""
        try:
            message = next(self._sender.call)
        except StopIteration:
            self.cancel()
            raise _cut_off() from None
        except grpc.RpcError as rpc_error:
            self._begin_again(from_rpc_error(rpc_error))
            return
        try:
            self._state.receive(message)
        except BaseException:  # of `on_step`, too
            self.cancel()
            raise
        with self._changed:
            self._changed.notify_all()
            error = self._state.break_error
        if error is not None:
            self._begin_again(error)

    def _begin_again(self, error: SidelightError) -> None:
        """Begins the stream again after an error. Raises the error if it may not."""
        self._sender.call.cancel()
        try:
            delay = self._state.resumption.next_delay(error)
        except SidelightError:
            self.cancel()
            raise
        with self._changed:
            self._changed.wait_for(lambda: self._sender.is_cancelled, delay)
            if not self._sender.is_cancelled:
                self._sender.begin_call(self._state.next_messages())

    def _finish(self) -> None:
        """Closes the stream after its last text, once."""
        self._sender.put(None)
        call, self._sender.call = self._sender.call, None
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


class AsyncManyStream(AsyncIterator[R], Generic[S, R]):
    """Many running texts. Iterate over their results with `async for`.

    A text that fails has its error in its result, and the others go on. An `async with` block cancels all texts if the
    block is left early.
    """

    def __init__(
        self, begin: Callable[[], Any], sources: Iterable[S] | AsyncIterable[S], state: ManyState[S, R]
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

    async def __anext__(self) -> R:
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

    async def _send(self, source: S) -> None:
        async with self._writing:
            is_idle = not self._state.num_running
            message = self._state.add(source)
            if message is not None:
                if self._call is None or (is_idle and self._call.done()):  # a server may end an idle stream
                    self._call = DuplexCall(self._begin())
                self._has_changed.set()
                await self._write(message)
        self._has_changed.set()

    async def _write(self, message: service_pb.AttributeManyRequest) -> None:
        # If the call is broken, the reader learns why. A text that was not sent counts as a running text.
        call = self._call
        try:
            await call.write(message)
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
        self._call = DuplexCall(self._begin())
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
            with contextlib.suppress(grpc.RpcError):
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


class AttributionManyStream(ManyStream[ManySource, ManyResult]):
    """The running texts of `Client.attribute_many`."""


class AsyncAttributionManyStream(AsyncManyStream[ManySource, ManyResult]):
    """The running texts of `AsyncClient.attribute_many`."""


class AlignmentManyStream(ManyStream[Pair, ManyAlignment]):
    """The running pairs of `Client.align_many`."""


class AsyncAlignmentManyStream(AsyncManyStream[Pair, ManyAlignment]):
    """The running pairs of `AsyncClient.align_many`."""
