"""The calls that are open, and what each call waits for: its request, or its reader.

gRPC lets a call wait for ever. A late request holds memory in gRPC, and a stream whose reader has stalled holds the
messages that were sent. `Calls` ends both.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Literal, NoReturn

import grpc
from google.protobuf.message import Message

from ..engine import HeldBack, OutputQueue, RequestState
from ..errors import RequestError, internal, invalid, late, stalled
from ..memory import give_back
from . import status

log = logging.getLogger(__name__)

# Seconds for which a reader may take no message that waits for it.
_MAX_STALL_SECONDS = 60.0
# Seconds within which a request must arrive after its call has begun.
_MAX_ARRIVAL_SECONDS = 10.0
# How many requests may take longer than a moment to arrive: gRPC holds up to 4 MiB of each, its limit.
_MAX_SLOW_ARRIVALS, _MOMENT_SECONDS = 64, 1.0
# Seconds for which a reader may take no message before the client's requests come after the requests of other clients.
_SLOW_READER_SECONDS = 0.25
# Seconds between two checks of all calls.
_CHECK_INTERVAL = 0.25

Context = grpc.aio.ServicerContext[Any, Any]

# What `read` returns after the last request of a client.
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]


class Call:
    """One call. It belongs to the task that answers the call.

    Attributes:
        context: gRPC's context.
        request_id: The request's id, as soon as it is known.
        output_queue: Where the call's outputs come from, as soon as the engine has the request.
        request_state: The engine's state of the request, as soon as the engine has the request.
        waits_for: What the call waits for now.
        waiting_since: When the call began to wait, by the monotonic clock.
        num_written: How many messages the reader has taken.
        error: Why another task has ended the call.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.request_id = ""
        self.output_queue: OutputQueue | None = None
        self.request_state: RequestState | None = None
        self.waits_for: Literal["request", "reader"] | None = None
        self.waiting_since = 0.0
        self.num_written = 0
        self.error: RequestError | None = None
        self._has_sent_headers = False
        self._task = asyncio.current_task()

    async def read(self) -> bytes:
        """Returns the call's one request. Raises RequestError if there is none."""
        data = await self.read_next()
        if data is EOF:
            raise invalid("", "MALFORMED", "the call carries no request")
        return data

    async def read_next(self) -> Any:
        """Returns the next request of a stream, or EOF. Each request may be as late as a first request."""
        return await self._wait("request", self.context.read())

    async def send_headers(self) -> None:
        """Sends the response headers, once.

        gRPC would send the headers with the first message. If a reader stalled at the first message, gRPC could then
        send it no status.
        """
        if not self._has_sent_headers:
            self._has_sent_headers = True
            await self._wait("reader", self.context.send_initial_metadata(()))

    async def write(self, message: Message) -> None:
        """Sends a message as soon as the reader has taken enough of the messages before."""
        await self.send_headers()
        await self._wait("reader", self.context.write(message))
        self.num_written += 1

    async def _wait(self, reason: Literal["request", "reader"], operation: Awaitable[Any]) -> Any:
        self.waits_for, self.waiting_since = reason, time.monotonic()
        try:
            return await operation
        except grpc.aio.InternalError:
            # The client has gone. gRPC would log every other exception, in ten lines for each call.
            raise asyncio.CancelledError from None
        finally:
            self.waits_for = None

    @property
    def client(self) -> Hashable:
        """The client's connection. All clients behind a proxy are one, and all clients of a unix socket."""
        return self.context.peer()

    def end(self, error: RequestError) -> None:
        """Ends the call with an error. A reader that has stalled gets the status when it reads on. For any task."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    async def abort(self, error: RequestError) -> NoReturn:
        """Sends the error as a status."""
        await status.abort(self.context, error, self.request_id)


class Calls:
    """All open calls of one server. For one event loop."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}  # in the order in which they have begun
        self._give_back_at = math.inf  # when to give back the memory of requests that have not arrived

    def make_handler(self, method: Callable[[Call], Awaitable[None]]) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns the gRPC handler of a method. The handler turns every error into a status.

        Every method reads and writes by itself, so all methods are streams for gRPC. On the wire there is no
        difference.
        """

        async def handle(_: object, context: Context) -> None:
            call = Call(context)
            self._calls[call] = None
            try:
                await method(call)
                return
            except grpc.aio.AbortError:  # the status has been sent
                raise
            except RequestError as request_error:
                error = request_error
            except asyncio.CancelledError:
                if call.error is None:  # the client has cancelled, or the server ends
                    raise
                error = call.error
            except Exception:
                log.exception("request %s failed", call.request_id)
                error = internal()
            finally:
                del self._calls[call]
            await call.abort(error)

        return grpc.stream_stream_rpc_method_handler(handle, response_serializer=_serialize)

    async def watch(self, hold_back: Callable[[HeldBack], None]) -> None:
        """Ends calls that wait too long, and reports clients whose readers are slow, until it is cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            try:
                self._end_overdue(time.monotonic())
                hold_back(self._find_held_back(time.monotonic()))
                if time.monotonic() > self._give_back_at:
                    self._give_back_at = math.inf
                    await asyncio.to_thread(give_back)
            except Exception:
                log.exception("the check of all calls failed")

    def _end_overdue(self, now: float) -> None:
        arriving = [
            call for call in self._calls if call.waits_for == "request" and now - call.waiting_since > _MOMENT_SECONDS
        ]
        for index, call in enumerate(arriving):
            if now - call.waiting_since > _MAX_ARRIVAL_SECONDS or index < len(arriving) - _MAX_SLOW_ARRIVALS:
                call.end(late(_MAX_ARRIVAL_SECONDS))
                self._give_back_at = min(self._give_back_at, now + _MOMENT_SECONDS)
        for call in self._find_stalled(now - _MAX_STALL_SECONDS):
            call.end(stalled())
        # A request that has failed need not wait as long to tell its client.
        self.end_failed(_MOMENT_SECONDS)

    def _find_held_back(self, now: float) -> HeldBack:
        stalled_calls = dict.fromkeys(self._find_stalled(now - _SLOW_READER_SECONDS))
        # The first message may come before any work. That the reader takes it shows nothing about the reader.
        num_stalled = Counter(call.client for call in stalled_calls if call.num_written)
        reading = (call for call in self._calls if call.num_written > 1 and call not in stalled_calls)
        num_reading = Counter(call.client for call in reading)
        return HeldBack([call.request_state for call in stalled_calls], num_stalled, num_reading)

    def end_failed(self, seconds: float) -> None:
        """Ends calls whose requests have failed, if the reader has taken no message for some seconds.

        The reader gets the status next, instead of other messages that wait for it.
        """
        for call in self._find_stalled(time.monotonic() - seconds):
            if call.output_queue is not None and call.output_queue.error is not None:
                call.end(call.output_queue.error)

    def _find_stalled(self, since: float) -> list[Call]:
        return [call for call in self._calls if call.waits_for == "reader" and call.waiting_since < since]

    @property
    def are_over(self) -> bool:
        """Whether all calls with outputs have ended, except calls whose readers take no message."""
        stalled_calls = set(self._find_stalled(time.monotonic() - _MOMENT_SECONDS))
        return all(call.output_queue is None or call in stalled_calls for call in self._calls)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
