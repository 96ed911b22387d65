"""Health and reflection answer as gRPC's own services do."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from sidelight.server.api.calls import Calls
from sidelight.server.api.standard_services import Health

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = {
    "",
    "sidelight.v1.AttributionService",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "tatoeba-en-de",
}


async def test_each_service_and_each_model_has_its_health(bundled_server):
    async with grpc.aio.insecure_channel(bundled_server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        listed = (await health.List(health_pb2.HealthListRequest(), timeout=60)).statuses
        assert {name: listed[name].status for name in listed} == dict.fromkeys(NAMES, SERVING)
        for name in NAMES:
            response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert response.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        watching = health.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watching.cancel()


async def test_a_model_that_does_not_serve_takes_the_services_along_and_no_other_model():
    health = Health(Calls(), ["service"], ["a", "b"])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([health.handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watches = {name: stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "service", "a", "b")}

        async def read(*names: str) -> list[int]:
            return [(await watches[name].read()).status for name in names]

        assert await read(*watches) == [NOT_SERVING] * 4
        health.set_serving("a", is_serving=True)
        assert await read("a") == [SERVING]
        health.set_serving("b", is_serving=True)
        assert await read("b", "", "service") == [SERVING] * 3
        health.set_serving("a", is_serving=False)
        assert await read("a", "", "service") == [NOT_SERVING] * 3
        statuses = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert [statuses[name].status for name in ("", "service", "a", "b")] == [*[NOT_SERVING] * 3, SERVING]
        health.end()
        health.set_serving("a", is_serving=True)
        assert await read("b") == [NOT_SERVING]
        for watch in watches.values():
            assert await watch.read() is grpc.aio.EOF
    await server.stop(None)


async def test_reflection_answers_as_grpcs_own_service(bundled_server):
    async with grpc.aio.insecure_channel(bundled_server) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (listed,) = [response async for response in reflection.ServerReflectionInfo(asked, timeout=60)]
        names = {service.name for service in listed.list_services_response.service}
        assert {"sidelight.v1.AttributionService", "grpc.health.v1.Health"} <= names


def test_grpcs_own_clients_read_health_and_reflection(bundled_server):
    with grpc.insecure_channel(bundled_server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "sidelight.v1.AttributionService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        database = ProtoReflectionDescriptorDatabase(channel)
        names = {"sidelight.v1.AttributionService", "inference.GRPCInferenceService"}
        assert names <= set(database.get_services())
        pool = DescriptorPool(database)
        for name in names:
            found = pool.FindServiceByName(name)
            assert found.methods
            assert all(method.input_type.file.name.startswith("sidelight/") for method in found.methods)
