"""The process of one front end of `sidelight serve`: from its fork to its end."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
from typing import Any

import grpc

from ..api import Address
from ..api.grpc_server import GrpcServer
from ..frontends import ChannelEnd, EngineLink, GrowingCounters, RemoteClients
from ..operations import CallLimits, Security, Telemetry, make_telemetry

log = logging.getLogger(__name__)

# Seconds between two reports of what was counted.
_REPORT_INTERVAL = 0.25

# Seconds for the last statuses after the engine's process has gone.
_LAST_STATUS_SECONDS = 1.0


def run_front_end(end: ChannelEnd, address: Address, security: Security, limits: CallLimits) -> int:
    """Serves until the engine's process says that this is over, or until it has gone. Returns the exit status."""
    telemetry = make_telemetry(importlib.metadata.version("sidelight"))
    try:
        return asyncio.run(_FrontEnd(address, security, telemetry, limits).run(end))
    finally:
        if telemetry is not None:
            telemetry.close()
        logging.shutdown()


class _FrontEnd:
    """What a front end does. For one event loop."""

    def __init__(self, address: Address, security: Security, telemetry: Telemetry | None, limits: CallLimits) -> None:
        self._address, self._security, self._telemetry, self._limits = address, security, telemetry, limits
        self._grpc_server: GrpcServer | None = None
        self._is_stopping = False
        self._stopping: asyncio.Task[None] | None = None
        self._has_ended = asyncio.Event()
        self._status = 0

    async def run(self, end: ChannelEnd) -> int:
        """Serves. Returns the exit status."""
        self._link = EngineLink(end, self._receive, self._end_without_engine)
        await self._link.open()
        engines = self._link.engines
        clients = RemoteClients(self._link)
        self._grpc_server = GrpcServer(engines, self._address, self._security, self._telemetry, self._limits, clients)
        for model, is_serving in self._link.is_serving.items():
            self._grpc_server.set_serving(model, is_serving=is_serving)
        methods = self._grpc_server.calls.methods
        self._counters = GrowingCounters(methods, [engine.metrics for engine in engines])
        await self._grpc_server.start()
        codes = tuple(code.name for code in grpc.StatusCode)
        self._link.send("listening", [(each.service, each.method, each.kind, codes) for each in methods])
        reporting = asyncio.ensure_future(self._report())
        await self._has_ended.wait()
        reporting.cancel()
        return self._status

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_INTERVAL)
            self._send_growth()

    def _send_growth(self) -> None:
        if (growth := self._counters.take_growth()) is not None:
            self._link.send("growth", growth)

    def _receive(self, name: str, arguments: tuple[Any, ...]) -> None:
        server = self._grpc_server
        if name == "stop":
            self._is_stopping = True
            self._stopping = asyncio.ensure_future(self._stop(*arguments))
        elif name == "cancel":
            number, request_id, identity = arguments
            count = 0 if server is None else server.calls.cancel(request_id, identity)
            self._link.send("answer", number, count)
        elif name == "serving" and server is not None:
            server.set_serving(arguments[0], is_serving=arguments[1])
        elif name == "failed" and server is not None:
            server.end_health()

    async def _stop(self, grace: float) -> None:
        """Stops, as the engine's process has asked."""
        if self._grpc_server is not None:
            await self._grpc_server.stop(grace)
            self._send_growth()
        self._link.close()
        self._has_ended.set()

    def _end_without_engine(self) -> None:
        """Ends after the engine's process has gone: at once where the server was about to end."""
        if self._has_ended.is_set():
            return
        if self._is_stopping:
            os._exit(1)
        log.critical("the process with the engines has gone: front end %d ends", os.getpid())
        self._is_stopping = True
        self._status = 1
        self._stopping = asyncio.ensure_future(self._stop_with_error())

    async def _stop_with_error(self) -> None:
        """Gives calls their last status, UNAVAILABLE, which the link has set."""
        if self._grpc_server is not None:
            await asyncio.wait([asyncio.ensure_future(self._grpc_server.stop(0))], timeout=2 * _LAST_STATUS_SECONDS)
        self._has_ended.set()
