"""A fake server for the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fake_server import FakeServer
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sidelight.v1.attribution_service_pb2_grpc import add_AttributionServiceServicer_to_server


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A fake server for one test, on a real socket. It is healthy, and its service "asleep" is not."""
    servicer, health_servicer = FakeServer(), health.HealthServicer()
    health_servicer.set("asleep", health_pb2.HealthCheckResponse.NOT_SERVING)
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool)
        add_AttributionServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        servicer.address = f"127.0.0.1:{port}"
        server.start()
        try:
            yield servicer
        finally:
            servicer.cancelled.set()
            server.stop(0).wait()
