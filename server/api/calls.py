"""The calls that are open, and what each call waits for: a request, or its reader.

gRPC lets a call wait for ever. A late request holds memory in gRPC, and a stream whose reader has stalled holds the
messages that were sent. `Calls` ends both.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any, Literal, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from ..engine import HeldBack, RequestStatus
from ..errors import RequestError, cancelled, idle, invalid, late, report_fault, stalled, stopped
from ..frontends import ClientCounts, Clients, EngineRequest
from ..memory import give_back
from ..operations import CallContext, Identity, MethodMetrics, Telemetry, observe_call
from . import status
from .authentication import Authenticator

log = logging.getLogger(__name__)

# Seconds for which a reader may take no message that waits for it.
_MAX_STALL_SECONDS = 60.0
# Seconds within which a request must arrive after its call has begun.
_MAX_ARRIVAL_SECONDS = 10.0
# How many requests may take longer than a moment to arrive: gRPC holds up to 4 MiB of each, its limit.
_MAX_SLOW_ARRIVALS, _MOMENT_SECONDS = 64, 1.0
# How many streams may wait for a later request with nothing else to do: half of such a request may have arrived.
_MAX_IDLE_STREAMS = 64
# Seconds for which a reader may take no message before the client's requests come after the requests of other clients.
_SLOW_READER_SECONDS = 0.25
# Seconds between two checks of all calls.
_CHECK_INTERVAL = 0.25

Context = grpc.aio.ServicerContext[Any, Any]

# What `read` returns after the last request of a client.
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]

# What a call can wait for: its first request, a later request of a stream, or its reader.
Wait = Literal["request", "later_request", "reader"]


class Call:
    """One call. It belongs to the task that answers the call.

    Attributes:
        context: gRPC's context.
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
        metrics: MethodMetrics,
        observed: CallContext,
        clients: Clients,
    ) -> None:
        """Makes a call.

        Args:
            context: gRPC's context.
            drained: Set when the server is about to end.
            metrics: Those of the method.
            observed: The call in the log and in spans.
            clients: The clients of the server.
        """
        self.context = context
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


class Calls:
    """All open calls of one server. For one event loop.

    Attributes:
        methods: The counters of all methods.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        telemetry: Telemetry | None = None,
        clients: Clients | None = None,
    ) -> None:
        self.methods: list[MethodMetrics] = []
        self._authenticator = authenticator or Authenticator()
        self._telemetry = telemetry
        self._clients = clients or ClientCounts()
        self._calls: dict[Call, None] = {}  # in the order in which they have begun
        self._drained = asyncio.Event()
        self._give_back_at = math.inf  # when to give back the memory of requests that have not arrived

    def make_handler(
        self,
        method: Callable[[Call], Awaitable[None]],
        descriptor: MethodDescriptor,
        *,
        is_public: bool = False,
        serves_to_end: bool = False,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns the gRPC handler of a method. The handler turns every error into a status, and counts calls.

        A public method needs no token. While the server ends, public methods and those with `serves_to_end` still
        answer, and calls of all others get UNAVAILABLE.
        Every method reads and writes by itself, so all methods are streams for gRPC, and the same on the wire.
        """
        service, codes = descriptor.containing_service.full_name, [code.name for code in grpc.StatusCode]
        metrics = MethodMetrics(service, descriptor.name, _kind_of(descriptor), codes)
        self.methods.append(metrics)

        async def handle(_: object, context: Context) -> None:
            metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
            with observe_call(metrics, self._telemetry, metadata) as observed:
                call = Call(context, self._drained, metrics, observed, self._clients)
                self._calls[call] = None
                try:
                    if not is_public:
                        call.identity = self._authenticator.identify(context)
                        observed.client = "" if call.identity is None else call.identity.name
                        self._check_open(serves_to_end=serves_to_end)
                    await method(call)
                    observed.code = grpc.StatusCode.OK.name
                    return
                except grpc.aio.AbortError:  # the status has been sent
                    observed.code = _code_of(context)
                    raise
                except RequestError as request_error:
                    error = request_error
                except asyncio.CancelledError:
                    if call.error is None:  # the client has cancelled, the deadline has passed, or the server ends
                        observed.code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else observed.code
                        raise
                    error = call.error
                except Exception as fault:
                    error = report_fault(log, call.request_id, fault)
                finally:
                    del self._calls[call]
                    call.close()
                observed.code = error.code.name
                await call.abort(error)

        return grpc.stream_stream_rpc_method_handler(handle, response_serializer=_serialize)

    def _check_open(self, *, serves_to_end: bool) -> None:
        if self._drained.is_set() and not serves_to_end:
            raise stopped()

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
        arriving = self._find_waiting("request", now - _MOMENT_SECONDS)
        for index, call in enumerate(arriving):
            is_late = call.has_waited("request", now - _MAX_ARRIVAL_SECONDS)
            if is_late or index < len(arriving) - _MAX_SLOW_ARRIVALS:
                call.end(late(_MAX_ARRIVAL_SECONDS))
                self._give_back_at = min(self._give_back_at, now + _MOMENT_SECONDS)
        idle_calls = [call for call in self._find_waiting("later_request", now - _MOMENT_SECONDS) if not call.requests]
        idle_calls.sort(key=lambda call: call.waits["later_request"])
        for call in idle_calls[: max(0, len(idle_calls) - _MAX_IDLE_STREAMS)]:
            call.end(idle())
        for call in self._find_waiting("reader", now - _MAX_STALL_SECONDS):
            call.end(stalled())
        # A request that has failed need not wait as long to tell its client.
        self.end_failed(_MOMENT_SECONDS)

    def _find_held_back(self, now: float) -> HeldBack:
        stalled_calls = dict.fromkeys(self._find_waiting("reader", now - _SLOW_READER_SECONDS))
        # The first message may come before any work. That the reader takes it shows nothing about the reader.
        num_stalled = _count_requests(call for call in stalled_calls if call.num_written)
        num_reading = _count_requests(
            call for call in self._calls if call.num_written > 1 and call not in stalled_calls
        )
        states = [state for call in stalled_calls for state in call.requests.values()]
        return HeldBack(states, num_stalled, num_reading)

    def cancel(self, request_id: str, identity: Identity | None) -> int:
        """Cancels all requests of an id that a client has sent to this process. Returns how many there were."""
        return sum(call.cancel(request_id) for call in list(self._calls) if call.identity == identity)

    async def cancel_everywhere(self, request_id: str, identity: Identity | None) -> int:
        """Cancels all requests of an id that a client has sent. Returns how many there were."""
        return self.cancel(request_id, identity) + await self._clients.cancel_elsewhere(request_id, identity)

    def drain(self) -> None:
        """Tells all calls that the server is about to end. From now on, new calls get UNAVAILABLE."""
        self._drained.set()

    def end_failed(self, seconds: float) -> None:
        """Ends calls whose requests have failed, if the reader has taken no message for some seconds.

        The reader gets the status next, instead of other messages that wait for it.
        """
        for call in self._find_waiting("reader", time.monotonic() - seconds):
            if (error := call.failure) is not None:
                call.end(error)

    def _find_waiting(self, reason: Wait, since: float) -> list[Call]:
        return [call for call in self._calls if call.has_waited(reason, since)]

    @property
    def are_over(self) -> bool:
        """Whether all calls with outputs have ended, except calls whose readers take no message."""
        stalled_calls = set(self._find_waiting("reader", time.monotonic() - _MOMENT_SECONDS))
        return all(not call.requests or call in stalled_calls for call in self._calls)


def _kind_of(descriptor: MethodDescriptor) -> str:
    if descriptor.client_streaming:
        return "bidi_stream" if descriptor.server_streaming else "client_stream"
    return "server_stream" if descriptor.server_streaming else "unary"


def _code_of(context: Context) -> str:
    """Returns the name of the status that was set for a call."""
    code: Any = context.code()
    return next((each.name for each in grpc.StatusCode if code in (each, each.value[0])), "UNKNOWN")


def _count_requests(calls: Iterable[Call]) -> Counter[Hashable]:
    """Returns the number of readers of each client. Each request of a call counts as a reader."""
    counts: Counter[Hashable] = Counter()
    for call in calls:
        counts[call.client] += max(1, len(call.requests))
    return counts


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
