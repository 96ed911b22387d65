"""The calls under way, and what each waits for: its request to arrive, or its reader to take something.

gRPC lets both take for ever. A request that does not arrive is held half-received, and a stream whose reader has
stalled holds what it was sent: here both have an end. Knows gRPC's contexts; does not know what is asked or answered.
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

from ..engine.output_queue import OutputQueue
from ..engine.waiting_queue import HeldBack
from ..errors import RequestError, internal, invalid, late, stalled
from ..memory import give_back
from .status import details, status_code

log = logging.getLogger(__name__)

# Seconds for which a reader may take nothing of what waits for it.
_STALLED = 60.0
# Seconds within which a request must arrive, once its call has begun.
_ARRIVAL = 10.0
# How many may take more than a moment for it, each held by gRPC in up to its limit of 4 MiB; and a moment, in seconds.
_ARRIVING, _MOMENT = 64, 1.0
# Seconds for which a reader may take nothing, and its client is as others are.
_SLOW = 0.25
# Seconds between two looks at all calls.
_INTERVAL = 0.25

Context = grpc.aio.ServicerContext[Any, Any]

# What a call's client has sent when it will send no more.
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]


class Call:
    """One call, for the task that serves it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.request_id = ""  # once it is known
        self.outbox: OutputQueue | None = None  # where its events come from, once there is one
        self.ticket: Hashable = None  # what the engine knows it by
        self.waits_for: Literal["request", "reader"] | None = None
        self.since = 0.0
        self.error: RequestError | None = None  # why it has been ended from outside
        self._has_begun = False
        self.written = 0  # messages, which its reader has taken
        self._task = asyncio.current_task()

    async def read(self) -> bytes:
        """The request. Raises RequestError where there is none."""
        data = await self.receive()
        if data is EOF:
            raise invalid("", "MALFORMED", "the call carries no request")
        return data

    async def receive(self) -> Any:
        """The next request of a stream of them; EOF behind the last one. As late as a first one may be."""
        return await self._wait("request", self.context.read())

    async def begin(self) -> None:
        """Sends what comes before the first message, once.

        gRPC would send it with the message, and could then tell a reader no status that has stalled at the first one.
        """
        if not self._has_begun:
            self._has_begun = True
            await self._wait("reader", self.context.send_initial_metadata(()))

    async def write(self, message: Message) -> None:
        """Sends a message, when its reader has taken enough of those before."""
        await self.begin()
        await self._wait("reader", self.context.write(message))
        self.written += 1

    async def _wait(self, reason: Literal["request", "reader"], what: Awaitable[Any]) -> Any:
        self.waits_for, self.since = reason, time.monotonic()
        try:
            return await what
        except grpc.aio.InternalError:
            # The client has gone. gRPC logs whatever else it is left with, ten lines for each call.
            raise asyncio.CancelledError from None
        finally:
            self.waits_for = None

    @property
    def client(self) -> Hashable:
        """Who calls: a connection. Behind a proxy, all of its clients; of a unix socket too."""
        return self.context.peer()

    def end(self, error: RequestError) -> None:
        """Ends the call with a status, which a reader that has stalled gets when it reads on."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    async def abort(self, error: RequestError) -> NoReturn:
        """Tells the client a status with its details. A stalled reader gets it behind what it has not taken."""
        trailers = (("grpc-status-details-bin", details(error, self.request_id)),)
        try:
            await self.context.abort(status_code(error), str(error), trailers)
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None
        raise AssertionError("abort does not return")


class Calls:
    """All calls of a server. For one event loop."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}  # in the order in which they have begun
        self._gives_back_at = math.inf  # the memory of requests that have not arrived

    def answering(self, method: Callable[[Call], Awaitable[None]]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler of a method, which turns whatever goes wrong into a status.

        Every method reads and writes by itself, so that for gRPC all are streams; on the wire there is no difference.
        """

        async def handler(_: object, context: Context) -> None:
            call = Call(context)
            self._calls[call] = None
            try:
                await method(call)
                return
            except grpc.aio.AbortError:  # the status has been sent
                raise
            except RequestError as fault:
                error = fault
            except asyncio.CancelledError:
                if call.error is None:  # by the client, or by the end of the server
                    raise
                error = call.error
            except Exception:
                log.exception("request %s failed", call.request_id)
                error = internal()
            finally:
                del self._calls[call]
            await call.abort(error)

        return grpc.stream_stream_rpc_method_handler(handler, response_serializer=_serialize)

    async def watch(self, hold_back: Callable[[HeldBack], None]) -> None:
        """Ends what waits too long, and says which clients are held back, until it is cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                self._end_the_late(time.monotonic())
                hold_back(self._held_back(time.monotonic()))
                if time.monotonic() > self._gives_back_at:
                    self._gives_back_at = math.inf
                    await asyncio.to_thread(give_back)
            except Exception:
                log.exception("looking at the calls failed")

    def _end_the_late(self, now: float) -> None:
        arriving = [call for call in self._calls if call.waits_for == "request" and now - call.since > _MOMENT]
        for place, call in enumerate(arriving):
            if now - call.since > _ARRIVAL or place < len(arriving) - _ARRIVING:
                call.end(late(_ARRIVAL))
                self._gives_back_at = min(self._gives_back_at, now + _MOMENT)
        for call in self._stalled(now - _STALLED):
            call.end(stalled())
        # What has ended otherwise need not wait so long to say why.
        self.tell_errors(_MOMENT)

    def _held_back(self, now: float) -> HeldBack:
        stalled = dict.fromkeys(self._stalled(now - _SLOW))
        # The first message may come before any work, and says nothing about a reader that takes it.
        stalled_of = Counter(call.client for call in stalled if call.written)
        reading = (call for call in self._calls if call.written > 1 and call not in stalled)
        return HeldBack([call.ticket for call in stalled], stalled_of, Counter(call.client for call in reading))

    def tell_errors(self, seconds: float) -> None:
        """Ends calls whose jobs have ended with an error, and whose readers have taken nothing for so many seconds.

        Each gets its status next, instead of what else was made for it.
        """
        for call in self._stalled(time.monotonic() - seconds):
            if call.outbox is not None and call.outbox.error is not None:
                call.end(call.outbox.error)

    def _stalled(self, since: float) -> list[Call]:
        return [call for call in self._calls if call.waits_for == "reader" and call.since < since]

    @property
    def are_over(self) -> bool:
        """Whether no call with a stream of events is left but those whose readers take nothing."""
        stalled = set(self._stalled(time.monotonic() - _MOMENT))
        return all(call.outbox is None or call in stalled for call in self._calls)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
