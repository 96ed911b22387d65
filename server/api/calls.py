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
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from ..engine import HeldBack
from ..errors import RequestError, idle, late, report_fault, silent, stalled, stopped, too_old
from ..frontends import ClientCounts, Clients
from ..memory import give_back
from ..operations import CallLimits, Identity, MethodMetrics, Telemetry, observe_call
from .authentication import Authenticator
from .call import Call, Context, Wait

log = logging.getLogger(__name__)

# How many requests may take longer than a moment to arrive: gRPC holds up to a whole message of each.
_MAX_SLOW_ARRIVALS, _MOMENT_SECONDS = 64, 1.0
# How many streams may wait for a later request with nothing else to do: half of such a request may have arrived.
_MAX_IDLE_STREAMS = 64
# Seconds for which a reader may take no message before the client's requests come after the requests of other clients.
_SLOW_READER_SECONDS = 0.25
# Seconds between two checks of all calls.
_CHECK_INTERVAL = 0.25
# Seconds for which a stream that is too old may go on with the texts that it has read.
_LAST_TEXTS_SECONDS = 60.0


class Calls:
    """All open calls of one server. For one event loop.

    Attributes:
        limits: The limits of calls and streams.
        methods: The counters of all methods.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        telemetry: Telemetry | None = None,
        limits: CallLimits | None = None,
        clients: Clients | None = None,
    ) -> None:
        self.limits = limits or CallLimits()
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
                call = Call(context, self._drained, self.limits, metrics, observed, self._clients)
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
        limits = self.limits
        arriving = self._find_waiting("request", now - _MOMENT_SECONDS)
        for index, call in enumerate(arriving):
            is_late = call.has_waited("request", now - limits.arrival_timeout)
            if is_late or index < len(arriving) - _MAX_SLOW_ARRIVALS:
                call.end(late(limits.arrival_timeout))
                self._give_back_at = min(self._give_back_at, now + _MOMENT_SECONDS)
        idle_calls = [call for call in self._find_waiting("later_request", now - _MOMENT_SECONDS) if not call.requests]
        idle_calls.sort(key=lambda call: call.waits["later_request"])
        for call in idle_calls[: max(0, len(idle_calls) - _MAX_IDLE_STREAMS)]:
            call.end(idle())
        for call in idle_calls:
            if call.has_waited("later_request", now - limits.stream_idle_timeout):
                call.end(silent(limits.stream_idle_timeout))
        for call in list(self._calls):
            # A stream of many texts ends by itself, once the texts that it has read are done.
            seconds = limits.max_stream_age + (_LAST_TEXTS_SECONDS if call.cancel_text is not None else 0)
            if now - call.begun_at > seconds:
                call.end(too_old(limits.max_stream_age))
        for call in self._find_waiting("reader", now - limits.reader_timeout):
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
