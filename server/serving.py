"""A server in one piece: engines, service, health and reflection on a socket, started and stopped in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from .addresses import Address, AddressError
from .engine import Engine, Limits
from .models import LoadedModel
from .service import SERVICE, AttributionService
from .warmup import warm

log = logging.getLogger(__name__)

# Seconds for the last statuses to leave after the engines have stopped.
_FAREWELL = 1.0


class Server:
    """Serves loaded models; the first is the default. Made, started and stopped in one event loop."""

    def __init__(self, models: Sequence[LoadedModel], address: str | Address, limits: Limits | None = None) -> None:
        self._engines = [Engine(loaded, limits) for loaded in models]
        self._address = address
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        # Received messages are texts, so gRPC's limit of 4 MiB is plenty; what is sent has its own limits.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)])
        self._server.add_generic_rpc_handlers((AttributionService(self._engines).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

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
        for name in ("", SERVICE.full_name):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return address.name if address.is_unix else f"{address.name.rpartition(':')[0]}:{port}"

    async def stop(self, grace: float = 0.0) -> None:
        """Takes no more requests, gives the running ones `grace` seconds, then ends them with UNAVAILABLE."""
        await self._health.enter_graceful_shutdown()
        # The engines end what is left, so that its clients are told why; gRPC waits a little longer for that.
        stopping = asyncio.ensure_future(self._server.stop(grace + _FAREWELL))
        await asyncio.wait([stopping], timeout=grace)
        for engine in self._engines:
            await asyncio.to_thread(engine.stop)
        await stopping
        if isinstance(self._address, Address):  # gRPC has taken its socket away by now
            self._address.close()
