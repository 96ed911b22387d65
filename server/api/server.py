"""A server in one piece: engines, service, health and reflection on a socket, started and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from ..engine.engine import Engine, EngineConfig
from ..engine.waiting_queue import HeldBack
from ..models import LoadedModel
from ..runner.warmup import warm
from .addresses import Address, AddressError
from .calls import Calls
from .service import SERVICE, AttributionService
from .standard_services import Health, reflection_handler
from .validation import MAX_REQUEST_BYTES

# Seconds for the last statuses to leave after the engines have stopped.
_FAREWELL = 1.0

# Seconds without a read after which a stream gets its last status at once, ahead of the events that wait for it.
_SLOW = 0.2

# Seconds between two looks at whether all calls are over.
_LOOK = 0.05

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),  # what is sent has its own limits
    # One limit for both, or between them gRPC would refuse by lot.
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # Requests that have come and are not yet looked at. Above its limit gRPC cancels some without a word; the engine
    # refuses what is too much with a status.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class Server:
    """Serves loaded models; the first is the default. Made, started and stopped in one event loop."""

    def __init__(
        self, models: Sequence[LoadedModel], address: str | Address, limits: EngineConfig | None = None
    ) -> None:
        self._engines = [Engine(loaded, limits, self._note_failure) for loaded in models]
        self._address = address
        self._loop = asyncio.get_running_loop()
        self.failed = asyncio.Event()  # set when an engine has ended by itself: the server serves no more
        self._calls = Calls()
        self._health = Health(self._calls)
        self._service = AttributionService(self._engines, self._calls)
        self._server = grpc.aio.server(options=_OPTIONS)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        handlers = (self._service.handler(), self._health.handler(), reflection_handler(self._calls, names))
        self._server.add_generic_rpc_handlers(handlers)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listens and serves. Returns the address, with the real port where 0 was asked. Raises AddressError.

        Nothing is accepted before the engines run. An address that was given held is closed by `stop`.
        """
        address = self._address if isinstance(self._address, Address) else Address(self._address)
        self._address = address
        address.release()
        try:
            port = self._server.add_insecure_port(address.name)
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address.name}") from error
        for engine in self._engines:
            await asyncio.to_thread(warm, engine.loaded)
            await asyncio.to_thread(engine.start)
        await self._server.start()
        self._watching = asyncio.create_task(self._calls.watch(self._hold_back))
        for name in ("", SERVICE.full_name):
            await self._health.set_serving(name)
        return address.name if address.is_unix else f"{address.name.rpartition(':')[0]}:{port}"

    def _hold_back(self, held_back: HeldBack) -> None:
        for engine in self._engines:
            engine.hold_back(held_back)

    def _note_failure(self) -> None:
        """Says that the server does not serve any more. For any thread."""

        async def note() -> None:
            await self._health.end()
            self.failed.set()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            asyncio.run_coroutine_threadsafe(note(), self._loop)

    async def stop(self, grace: float = 0.0) -> None:
        """Takes no more requests, gives the running ones `grace` seconds, then ends them with UNAVAILABLE.

        Waiting requests that would not be done by then end at once. A stream whose reader takes nothing delays
        no other call.
        """
        await self._health.end()
        for engine in self._engines:
            engine.drain(grace)
        # Longer than it takes: the end of the grace, and of the farewell, is said below.
        stopping = asyncio.ensure_future(self._server.stop(grace + 60 * _FAREWELL))
        end = time.monotonic() + grace
        while not (stopping.done() or self._calls.are_over) and (left := end - time.monotonic()) > 0:
            await asyncio.wait([stopping], timeout=min(left, _LOOK))
        # The engines end what is left, so that its clients are told why; gRPC waits a little longer for that.
        for engine in self._engines:
            await asyncio.to_thread(engine.stop)
        end = time.monotonic() + _FAREWELL
        while not stopping.done() and time.monotonic() < end:
            self._calls.tell_errors(_SLOW)
            await asyncio.wait([stopping], timeout=_LOOK)
        await self._server.stop(None)
        await stopping
        self._service.close()
        if self._watching is not None:
            self._watching.cancel()
        if isinstance(self._address, Address):  # gRPC has taken its socket away by now
            self._address.close()
