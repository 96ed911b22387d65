"""One call: what it waits for, a request or its reader, and how it ends."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Literal, NoReturn

import grpc
from google.protobuf.message import Message

from ..engine import RequestStatus
from ..errors import RequestError, cancelled, invalid
from ..frontends import Clients, EngineRequest
from ..operations import CallContext, CallLimits, Identity, MethodMetrics
from . import status

Context = grpc.aio.ServicerContext[Any, Any]

# What `read` returns after the last request of a client.
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]

# What a call can wait for: its first request, a later request of a stream, or its reader.
Wait = Literal["request", "later_request", "reader"]


class Call:
    """One call. It belongs to the task that answers the call.

    Attributes:
        context: gRPC's context.
        limits: The limits of all calls.
        begun_at: When the call has begun, by the monotonic clock.
        identity: The client's name; None where nothing names the client.
        drained: Set when the server is about to end.
        requests: The engine's states of the call's requests, as soon as the engine has them, by their ids.
        cancel_text: For a call that has many requests: cancels the requests of an id. Returns how many there were.
        last_error: For a call that has many requests: the error that the call ends with after its requests.
        waits: What the call waits for now, and since when, by the monotonic clock.
        num_written: How many messages the reader has taken.
        error: Why another task has ended the call.
    """

    def __init__(
        self,
        context: Context,
        drained: asyncio.Event,
        limits: CallLimits,
        metrics: MethodMetrics,
        observed: CallContext,
        clients: Clients,
    ) -> None:
        """Makes a call.

        Args:
            context: gRPC's context.
            drained: Set when the server is about to end.
            limits: The limits of all calls.
            metrics: Those of the method.
            observed: The call in the log and in spans.
            clients: The clients of the server.
        """
        self.context = context
        self.limits = limits
        self.begun_at = time.monotonic()
        self.identity: Identity | None = None
        self.drained = drained
        self._metrics = metrics
        self._observed = observed
        self._clients = clients
        self._num_requests = 0  # of this call, in the count of `clients`
        self.requests: dict[str, EngineRequest] = {}
        self.cancel_text: Callable[[str], int] | None = None
        self.last_error: RequestError | None = None
        self.waits: dict[Wait, float] = {}
        self.num_written = 0
        self.error: RequestError | None = None
        self._has_sent_headers = False
        self._task = asyncio.current_task()

    @property
    def request_id(self) -> str:
        """The request's id, as soon as it is known. Empty for a call that has many requests."""
        return self._observed.request_id

    @request_id.setter
    def request_id(self, request_id: str) -> None:
        self._observed.request_id = request_id

    async def read(self) -> bytes:
        """Returns the call's one request. Raises RequestError if there is none."""
        data = await self.read_next()
        if data is EOF:
            raise invalid("", "MALFORMED", "the call carries no request")
        return data

    async def read_next(self, reason: Wait = "request") -> Any:
        """Returns the next request of a stream, or EOF. A request may be as late as `reason` allows."""
        data = await self._wait(reason, self.context.read())
        self.record_message(data)
        return data

    def record_message(self, data: Any) -> None:
        """Counts what a read gave, where that is a message."""
        self._metrics.num_received += data is not EOF

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
        self._metrics.num_sent += 1

    async def _wait(self, reason: Wait, operation: Awaitable[Any]) -> Any:
        self.waits[reason] = time.monotonic()
        try:
            return await operation
        except grpc.aio.InternalError:
            # The client has gone. gRPC would log every other exception, in ten lines for each call.
            raise asyncio.CancelledError from None
        finally:
            del self.waits[reason]

    def has_waited(self, reason: Wait, since: float) -> bool:
        """Whether the call waits, and began to wait before a time."""
        return self.waits.get(reason, math.inf) < since

    @property
    def failure(self) -> RequestError | None:
        """The error that the call ends with, whether its reader has come to its end or not."""
        states = self.requests.values()
        if self.cancel_text is None:
            return next((state.queue.error for state in states), None)
        has_ended = all(state.status is RequestStatus.FINISHED for state in states)
        return self.last_error if has_ended else None

    @property
    def client(self) -> Hashable:
        """The client, whose requests come after those of other clients where its readers stall.

        The client's identity, or else its connection: all clients without names behind a proxy are one, and all of a
        unix socket.
        """
        return self.identity or self.context.peer()

    @property
    def max_requests(self) -> float:
        """How many requests the client may have at once."""
        limit = None if self.identity is None else self.identity.max_requests
        return math.inf if limit is None else limit

    async def begin_request(self) -> None:
        """Counts a request of the client until `end_request`, or until the call ends.

        Raises RequestError where the client may have no more requests.
        """
        if self.identity is not None:
            await self._clients.begin_request(self.identity)
            self._num_requests += 1

    def end_request(self) -> None:
        """Counts one request of the call no more."""
        self._end_requests(1)

    def close(self) -> None:
        """Counts no request of the call any more. The call has ended."""
        self._end_requests(self._num_requests)

    def _end_requests(self, count: int) -> None:
        if self.identity is not None and count:
            self._num_requests -= count
            self._clients.end_requests(self.identity, count)

    def end(self, error: RequestError) -> bool:
        """Ends the call with an error, once. A reader that has stalled gets the status when it reads on.

        For any task. Returns whether the call had not been ended before.
        """
        if self.error is not None or self._task is None:
            return False
        self.error = error
        return self._task.cancel()

    def cancel(self, request_id: str) -> int:
        """Cancels the requests of an id. Returns how many there were. For any task."""
        if self.cancel_text is not None:
            return self.cancel_text(request_id)
        return int(self.request_id == request_id and self.end(cancelled()))

    async def abort(self, error: RequestError) -> NoReturn:
        """Sends the error as a status."""
        await status.abort(self.context, error, self.request_id)
