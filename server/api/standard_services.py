"""gRPC's standard services, health and reflection, with this server's parsing and statuses.

In gRPC's own implementation, a request that does not parse gets a status with the name of a Python class and leaves a
traceback in the log, and a stream of Watch never ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from ..errors import not_found, quote
from .call import EOF, Call
from .calls import Calls
from .parsing import parse

_MESSAGES: Any = health_pb2  # whose stubs lack the messages of List
# As `Any`: the stubs of the two packages name the class of gRPC's C extension.
_HEALTH: Any = health_pb2.DESCRIPTOR
_REFLECTION: Any = reflection_pb2.DESCRIPTOR

_SERVING, _NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """The health service: which services and which models serve. For one event loop.

    A model serves under its own name. A service, and the whole server under the empty name, serves while all models do.
    The names never change.

    It needs no token: the probes of load balancers and orchestrators cannot send any, and whether a server serves is
    no secret from any client that can connect.
    """

    def __init__(self, calls: Calls, services: Sequence[str], models: Sequence[str]) -> None:
        """No model serves before `set_serving`."""
        self._calls = calls
        self._services = ("", *services)
        self._is_serving = dict.fromkeys(models, False)
        self._has_ended = False
        self._changed = asyncio.Event()  # another one after each change

    def handler(self) -> grpc.GenericRpcHandler:
        """Returns the handlers of the service's methods."""
        methods = {"Check": self._check, "List": self._list, "Watch": self._watch}
        service: ServiceDescriptor = _HEALTH.services_by_name["Health"]
        handlers = {
            name: self._calls.make_handler(method, service.methods_by_name[name], is_public=True)
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, handlers)

    def set_serving(self, model: str, *, is_serving: bool) -> None:
        """Says whether a model serves."""
        self._is_serving[model] = is_serving
        self._announce()

    def is_serving(self, name: str) -> bool:
        """Whether a model, a service, or the server under the empty name serves."""
        return self._find_status(name) == _SERVING

    def end(self) -> None:
        """Sets everything to NOT_SERVING for good, and ends all streams of Watch with that."""
        self._has_ended = True
        self._announce()

    def _announce(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _find_status(self, name: str) -> Any:
        """Returns the status of a name; None if nothing has this name."""
        if name not in self._services and name not in self._is_serving:
            return None
        serves = all(self._is_serving.values()) if name in self._services else self._is_serving[name]
        return _SERVING if serves and not self._has_ended else _NOT_SERVING

    async def _check(self, call: Call) -> None:
        name = parse(health_pb2.HealthCheckRequest, await call.read()).service
        status = self._find_status(name)
        if status is None:
            raise not_found("service", "UNKNOWN_SERVICE", f"neither a service nor a model has the name {quote(name)}")
        await call.write(health_pb2.HealthCheckResponse(status=status))

    async def _list(self, call: Call) -> None:
        parse(_MESSAGES.HealthListRequest, await call.read())
        names = dict.fromkeys((*self._services, *self._is_serving))
        statuses = {name: health_pb2.HealthCheckResponse(status=self._find_status(name)) for name in names}
        await call.write(_MESSAGES.HealthListResponse(statuses=statuses))

    async def _watch(self, call: Call) -> None:
        name = parse(health_pb2.HealthCheckRequest, await call.read()).service
        last = None
        while True:
            changed, has_ended = self._changed, self._has_ended
            found = self._find_status(name)
            status = _UNKNOWN if found is None else found
            if status != last:
                await call.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            if has_ended:
                return
            await changed.wait()


class _Pools:
    """Several descriptor pools as one, as far as the reflection service looks into it."""

    def __init__(self, *pools: DescriptorPool) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def find(*args: Any) -> Any:
            """Calls the method of the first pool that knows what is asked for. Raises KeyError where none does."""
            for pool in self._pools[:-1]:
                with contextlib.suppress(KeyError):
                    return getattr(pool, name)(*args)
            return getattr(self._pools[-1], name)(*args)

        return find


def reflection_handler(
    calls: Calls, services: Sequence[str], pools: Sequence[DescriptorPool] = ()
) -> grpc.GenericRpcHandler:
    """Returns the handler of the reflection service for the named services.

    `pools` have what is not in the default pool.
    """
    servicer: Any = reflection.aio.ReflectionServicer(services, _Pools(*pools, descriptor_pool.Default()))

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
