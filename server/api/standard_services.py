"""gRPC's own services, health and reflection, with requests that are parsed as ours are.

In gRPC's own implementation, a request that does not parse gets a status with the name of a Python class and leaves a
traceback in the log, and a stream of Watch never ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ..errors import unimplemented
from .calls import EOF, Call, Calls
from .parsing import parse

_NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)


class Health:
    """Whether services serve. For one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._servicer: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._watching: set[asyncio.Task[None]] = set()
        self._is_over = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The handlers of its methods."""
        methods = {"Check": self._check, "List": _list, "Watch": self._watch}
        handlers = {name: self._calls.answering(method) for name, method in methods.items()}
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)

    async def set_serving(self, name: str) -> None:
        """Says that a service serves."""
        await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def end(self) -> None:
        """Says that none serves any more, and ends all that watch with it."""
        self._is_over = True
        if self._watching:
            for watching in self._watching:
                watching.cancel()
            await asyncio.wait(self._watching)
        await self._servicer.enter_graceful_shutdown()

    async def _check(self, call: Call) -> None:
        request = parse(health_pb2.HealthCheckRequest, await call.read())
        await call.write(await self._servicer.Check(request, call.context))

    async def _watch(self, call: Call) -> None:
        request = parse(health_pb2.HealthCheckRequest, await call.read())
        await call.begin()
        if not self._is_over:
            watching = asyncio.create_task(self._servicer.Watch(request, call.context))
            self._watching.add(watching)
            try:
                await asyncio.wait([watching])
            finally:
                self._watching.discard(watching)
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.InternalError):
                    await watching
        await call.write(_NOT_SERVING)


async def _list(call: Call) -> None:
    await call.read()
    raise unimplemented("")


def reflection_handler(calls: Calls, services: Sequence[str]) -> grpc.GenericRpcHandler:
    """The handler of reflection over some services."""
    servicer: Any = reflection.aio.ReflectionServicer(services)

    async def reflect(call: Call) -> None:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (data := await call.receive()) is not EOF:
                yield parse(reflection_pb2.ServerReflectionRequest, data)

        async for response in servicer.ServerReflectionInfo(requests(), call.context):
            await call.write(response)

    handlers = {"ServerReflectionInfo": calls.answering(reflect)}
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, handlers)
