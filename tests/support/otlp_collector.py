"""A collector of OpenTelemetry that keeps the names of what it gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer, metrics_service_pb2_grpc.MetricsServiceServicer):
    """A collector. Both services have a method of the same name.

    Attributes:
        names: The names of spans and metrics.
        services: The names of services, each with its version.
        trace_ids: The ids of the spans' traces.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.services: set[str] = set()
        self.trace_ids: set[str] = set()
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        with self._lock:
            if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
                groups: Any = request.resource_spans
                spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
                self.names |= {span.name for span in spans}
                self.trace_ids |= {span.trace_id.hex() for span in spans}
                answer: Any = trace_service_pb2.ExportTraceServiceResponse()
            else:
                groups = request.resource_metrics
                self.names |= {each.name for group in groups for scope in group.scope_metrics for each in scope.metrics}
                answer = metrics_service_pb2.ExportMetricsServiceResponse()
            for group in groups:
                attributes = {each.key: each.value.string_value for each in group.resource.attributes}
                self.services.add(attributes["service.name"] + " " + attributes["service.version"])
        return answer


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Runs a collector; gives it and its endpoint."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)
