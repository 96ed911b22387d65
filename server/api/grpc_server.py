"""GrpcServer: the services of engines at an address, started in order and stopped in order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from ..engine import HeldBack
from ..frontends import Clients, EngineClient
from ..operations import CallLimits, Security, Telemetry
from .authentication import Authenticator, make_credentials
from .call import Context
from .calls import Calls
from .inference_protocol import INFERENCE_SERVICE, InferenceService
from .service import SERVICE, AttributionService
from .standard_services import Health, reflection_handler
from .transport import Address, AddressError
from .transport.path_safe_server import PathSafeServer

# Seconds for which the server answers new calls after its end has begun, with a status that says when to try again.
# Load balancers and Kubernetes need about as long to lead clients to other servers.
_NOTICE_SECONDS = 5.0

# Seconds for the last statuses to be sent after the engines have stopped.
_LAST_STATUS_SECONDS = 1.0

# Seconds without a read after which a stream gets its last status before the outputs that wait for it.
_SLOW_READER_SECONDS = 0.2

# Seconds between two checks whether all calls are over.
_CHECK_INTERVAL = 0.05

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", -1),  # validation limits what is sent
    # Requests that wait for a handler. Above these limits gRPC cancels requests without a status. The engine has a
    # limit of its own, and refuses requests with a status.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
)


class _HandlerCallDetails(NamedTuple):
    """How gRPC asks for the handler of a method."""

    method: str
    invocation_metadata: tuple[()] = ()


class GrpcServer:
    """The services of engines at an address: all of a server but its engines. For one event loop.

    Without an address it has no socket: another gRPC server hands each of its calls to `answer`.
    """

    def __init__(
        self,
        engines: Sequence[EngineClient],
        address: str | Address | None,
        security: Security | None = None,
        telemetry: Telemetry | None = None,
        limits: CallLimits | None = None,
        clients: Clients | None = None,
    ) -> None:
        """No model serves before `set_serving`. With `clients`, other processes may listen at the same address."""
        self._engines = engines
        self._address = address
        self._security = security or Security()
        self.calls = Calls(Authenticator(self._security.tokens), telemetry, limits, clients)
        if telemetry is not None:
            for engine in engines:
                engine.metrics.on_first_step = telemetry.record_first_step
        names = [SERVICE.full_name, INFERENCE_SERVICE.full_name, health.SERVICE_NAME]
        if self._security.has_reflection:
            names.append(reflection.SERVICE_NAME)
        self._health = Health(self.calls, names, [engine.loaded.name for engine in engines])
        self._service = AttributionService(engines, self.calls)
        is_shared = ("grpc.so_reuseport", int(clients is not None))
        self._server = PathSafeServer((*_OPTIONS, is_shared, *_options_of(self.calls.limits)))
        inference = InferenceService(self._service.starter, self.calls, self._health)
        self._handlers = [self._service.handler(), inference.handler(), self._health.handler()]
        if self._security.has_reflection:
            self._handlers.append(reflection_handler(self.calls, names, [INFERENCE_SERVICE.file.pool]))
        self._server.add_generic_rpc_handlers(self._handlers)
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listens and serves. Returns the address, with the real port if port 0 was asked for. Raises AddressError.

        `stop` closes an address that was given as `Address`. Without an address, the result is empty.
        """
        address = self.hold_address()
        name = "" if address is None else await self._open(address)
        self._watch = asyncio.create_task(self.calls.watch(self._hold_back))
        return name

    def hold_address(self) -> Address | None:
        """Keeps other processes from the address until `start`. Raises AddressError."""
        if isinstance(self._address, str):
            self._address = Address(self._address)
        return self._address

    async def _open(self, address: Address) -> str:
        """Accepts connections. Returns the address with its port. Raises AddressError."""
        address.release()
        port = self._listen(address)  # gRPC accepts connections from here on
        await self._server.start()
        return address.name if address.is_unix else f"{address.name.rpartition(':')[0]}:{port}"

    async def answer(self, method: str, context: Context) -> None:
        """Answers a call that another gRPC server has accepted. See `Server.answer`."""
        details: Any = _HandlerCallDetails(method)
        found: Any = next(filter(None, (handler.service(details) for handler in self._handlers)))
        await found.stream_stream(None, context)

    @property
    def is_serving(self) -> bool:
        """Whether all models serve. For any thread."""
        return self._health.is_serving("")

    def set_serving(self, model: str, *, is_serving: bool) -> None:
        """Says in health checks whether a model serves."""
        self._health.set_serving(model, is_serving=is_serving)

    def end_health(self) -> None:
        """Says in health checks that nothing serves any more."""
        self._health.end()

    def _listen(self, address: Address) -> int:
        """Makes the socket. Returns the port. Raises AddressError."""
        mode = self._security.unix_mode if address.is_path else None
        certificates = self._security.certificates
        try:
            with _creation_mode(mode):
                if certificates is None:
                    return self._server.add_insecure_port(address.name)
                return self._server.add_secure_port(address.name, make_credentials(certificates))
        except RuntimeError as error:
            raise AddressError(f"cannot listen on {address.name}") from error

    def _hold_back(self, held_back: HeldBack) -> None:
        for engine in self._engines:
            engine.hold_back(held_back)

    async def stop(self, grace: float = 0.0) -> None:
        """Accepts no more calls, lets those in flight go on for `grace` seconds, then ends them with UNAVAILABLE.

        New calls get UNAVAILABLE. After a notice, gRPC closes connections for new calls, and clients that call again
        connect to another server. A waiting request that would not finish in time ends at once. A stream whose reader
        takes nothing delays no other call. Stops the engines as soon as their requests should be over.
        """
        self._health.end()
        self.calls.drain()
        end = time.monotonic() + grace
        await self._let_finish(end, min(grace, _NOTICE_SECONDS))
        # gRPC gets more time than needed: the loops below end the grace, and the time for the last statuses.
        stopping = asyncio.ensure_future(self._server.stop(grace + 60 * _LAST_STATUS_SECONDS))
        await self._let_finish(end, grace)
        # The engines end the requests that are left, with a status. gRPC waits a little longer for these statuses.
        for engine in self._engines:
            await asyncio.to_thread(engine.stop)
        end = time.monotonic() + _LAST_STATUS_SECONDS
        while not stopping.done() and time.monotonic() < end:
            self.calls.end_failed(_SLOW_READER_SECONDS)
            await asyncio.wait([stopping], timeout=_CHECK_INTERVAL)
        await self._server.stop(None)
        await stopping
        self._service.close()
        if self._watch is not None:
            self._watch.cancel()
        if isinstance(self._address, Address):  # gRPC has removed its socket by now
            self._address.close()

    async def _let_finish(self, end: float, seconds: float) -> None:
        """Waits until all calls with requests are over, for some seconds and until `end`, by the monotonic clock."""
        until = min(end, time.monotonic() + seconds)
        while not self.calls.are_over and (now := time.monotonic()) < until:
            for engine in self._engines:
                engine.drain(end - now)
            await asyncio.sleep(min(until - now, _CHECK_INTERVAL))


def _options_of(limits: CallLimits) -> list[tuple[str, int]]:
    """Returns the options of gRPC that keep limits."""
    options = [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        # Both have one limit: between a soft and a hard limit, gRPC refuses at random.
        ("grpc.max_metadata_size", limits.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_metadata_bytes),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        # By default, gRPC closes connections whose clients ask for a sign of life twice in five minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.min_ping_interval)),
    ]
    if limits.max_connection_age is not None:
        # Calls in flight go on: what ends them are the limits of streams.
        options.append(("grpc.max_connection_age_ms", _milliseconds(limits.max_connection_age)))
    return options


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1000)


@contextlib.contextmanager
def _creation_mode(mode: int | None) -> Iterator[None]:
    """Gives sockets that are made meanwhile these permissions from their first moment; None: those of the umask.

    The umask is that of the whole process. A file that another thread makes meanwhile gets at most these permissions.
    """
    if mode is None:
        yield
        return
    umask = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(umask)
