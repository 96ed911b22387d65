"""Health and reflection answer as gRPC's own services do."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


async def test_health_and_reflection_answer_as_grpcs_own_services(bundled_server):
    async with grpc.aio.insecure_channel(bundled_server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "sidelight.v1.AttributionService"):
            response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
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
        assert "sidelight.v1.AttributionService" in database.get_services()
