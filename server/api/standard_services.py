"""gRPC's standard services, health and reflection, with this server's parsing and statuses.

In gRPC's own implementation, a request that does not parse gets a status with the name of a Python class and leaves a
traceback in the log, and a stream of Watch never ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ..errors import unimplemented
from .calls import EOF, Call, Calls
from .parsing import parse

# As `Any`: the stubs of the two packages name the class of gRPC's C extension.
_HEALTH: Any = health_pb2.DESCRIPTOR
_REFLECTION: Any = reflection_pb2.DESCRIPTOR

_NOT_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)


class Health:
    """The health service: which services serve. For one event loop.

    It needs no token: the probes of load balancers and orchestrators cannot send any, and whether a server serves is
    no secret from whoever can connect.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._servicer: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        self._watches: set[asyncio.Task[None]] = set()
        self._has_ended = False

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of the service's methods."""
        methods = {"Check": self._check, "List": _list, "Watch": self._watch}
        service: ServiceDescriptor = _HEALTH.services_by_name["Health"]
        handlers = {
            name: self._calls.make_handler(method, service.methods_by_name[name], is_public=True)
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)

    async def set_serving(self, name: str) -> None:
        """Sets a service to SERVING."""
        await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def end(self) -> None:
        """Sets all services to NOT_SERVING for good, and ends all streams of Watch with that."""
        self._has_ended = True
        if self._watches:
            for watch in self._watches:
                watch.cancel()
            await asyncio.wait(self._watches)
        await self._servicer.enter_graceful_shutdown()

    async def _check(self, call: Call) -> None:
        request = parse(health_pb2.HealthCheckRequest, await call.read())
        await call.write(await self._servicer.Check(request, call.context))

    async def _watch(self, call: Call) -> None:
        request = parse(health_pb2.HealthCheckRequest, await call.read())
        await call.send_headers()
        if not self._has_ended:
            watch = asyncio.create_task(self._servicer.Watch(request, call.context))
            self._watches.add(watch)
            try:
                await asyncio.wait([watch])
            finally:
                self._watches.discard(watch)
                watch.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.InternalError):
                    await watch
        await call.write(_NOT_SERVING)


async def _list(call: Call) -> None:
    await call.read()
    raise unimplemented("")


def reflection_handler(calls: Calls, services: Sequence[str]) -> grpc.GenericRpcHandler:
    """Returns the handler of the reflection service for the named services."""
    servicer: Any = reflection.aio.ReflectionServicer(services)

    async def reflect(call: Call) -> None:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (data := await call.read_next()) is not EOF:
                yield parse(reflection_pb2.ServerReflectionRequest, data)

        async for response in servicer.ServerReflectionInfo(requests(), call.context):
            await call.write(response)

    name = "ServerReflectionInfo"
    service: ServiceDescriptor = _REFLECTION.services_by_name["ServerReflection"]
    handlers = {name: calls.make_handler(reflect, service.methods_by_name[name])}
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, handlers)
