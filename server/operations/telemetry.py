"""OpenTelemetry: a span for each call, with spans of its requests, and two metrics. Off without an endpoint.

The names are those of the semantic conventions 1.45: RPC, which are stable, and generative AI, which are in
development. The SDK reads its own environment, such as OTEL_TRACES_SAMPLER. Nothing is done for each step.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

# The buckets that the conventions give.
_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_FIRST_TOKEN_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)

# Seconds for which the end may take: a container is killed soon after its grace.
_CLOSE_SECONDS = 2.0

# The status codes that are faults of a server, by the conventions of gRPC.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class TelemetryError(Exception):
    """OpenTelemetry is configured, and cannot run."""


@dataclass(frozen=True)
class RequestTimes:
    """When the stages of a request began and ended, by `time.monotonic`; None for a stage that did not come."""

    arrival: float
    start: float | None
    source_read: float | None
    end: float


class CallTrace:
    """The span of one call that is recorded."""

    def __init__(self, tracer: Any, span: Span) -> None:
        self._tracer = tracer
        self.span = span
        self.trace_id = format(span.get_span_context().trace_id, "032x")

    def record_request(self, model: str, request_id: str, times: RequestTimes, error: str) -> None:
        """Records the stages of a request that has ended: queue, read source, steps. For any thread.

        In a follow stream, the stage of steps has the reading of what the source grows by.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        context = set_span_in_context(self.span)
        attributes: dict[str, Any] = {"gen_ai.request.model": model, "sidelight.request_id": request_id}
        stages = [("queue", times.arrival, times.start or times.end)]
        if times.start is not None:
            if times.source_read is not None:
                stages.append(("read source", times.start, times.source_read))
            stages.append(("steps", times.source_read or times.start, times.end))
        offset = time.time_ns() - time.monotonic_ns()
        for index, (name, begin, end) in enumerate(stages):
            span = self._tracer.start_span(name, context, attributes=attributes, start_time=offset + int(begin * 1e9))
            if error and index == len(stages) - 1:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR))
            span.end(offset + int(end * 1e9))


class Telemetry:
    """Records calls. For one event loop, but for what says otherwise."""

    def __init__(self, tracers: TracerProvider, meters: MeterProvider) -> None:
        self._providers: tuple[Any, Any] = (tracers, meters)
        self._tracer = tracers.get_tracer("sidelight")
        meter = meters.get_meter("sidelight")
        self._call_seconds = meter.create_histogram(
            "rpc.server.call.duration",
            unit="s",
            description="Duration of incoming calls.",
            explicit_bucket_boundaries_advisory=_CALL_SECONDS,
        )
        self._first_token_seconds = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="Time to the first token.",
            explicit_bucket_boundaries_advisory=_FIRST_TOKEN_SECONDS,
        )

    def begin_call(self, method: str, metadata: Mapping[str, str]) -> CallTrace | None:
        """Begins the span of a call, below the span that the client's metadata name; None where it is not sampled."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(metadata)
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        span = self._tracer.start_span(method, parent, SpanKind.SERVER, attributes)
        return CallTrace(self._tracer, span) if span.is_recording() else None

    def end_call(self, method: str, trace: CallTrace | None, code: str, seconds: float, client: str = "") -> None:
        """Ends the span of a call, and records the duration. The span alone has the client: clients may be many."""
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
        if code in _FAULTS:
            attributes["error.type"] = code
        self._call_seconds.record(seconds, attributes)
        if trace is not None:
            from opentelemetry.trace import Status, StatusCode

            trace.span.set_attributes(attributes | ({"enduser.id": client} if client else {}))
            if code in _FAULTS:
                trace.span.set_status(Status(StatusCode.ERROR))
            trace.span.end()

    def record_first_step(self, model: str, seconds: float) -> None:
        """Records the time from the arrival of a request to its first step."""
        attributes = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "sidelight",
            "gen_ai.request.model": model,
        }
        self._first_token_seconds.record(seconds, attributes)

    def close(self) -> None:
        """Sends what is left, within two seconds: a collector that is gone must not keep the process from its end."""
        closing = threading.Thread(target=self._shut_down, name="end of telemetry", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)

    def _shut_down(self) -> None:
        for provider in self._providers:
            provider.shutdown()


def make_telemetry(version: str) -> Telemetry | None:
    """Makes the telemetry that the environment asks for; None without an endpoint. Raises TelemetryError."""
    has_traces, has_metrics = _has_endpoint("TRACES"), _has_endpoint("METRICS")
    if not (has_traces or has_metrics) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise TelemetryError(f"{error.name} is missing; install it with: pip install 'sidelight[otel]'") from None
    # A name in the environment is preferred to this one.
    name = os.environ.get("OTEL_SERVICE_NAME", "sidelight")
    resource = Resource.create({"service.name": name, "service.version": version})
    tracers = TracerProvider(resource=resource)
    if has_traces:
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    readers = [PeriodicExportingMetricReader(OTLPMetricExporter())] if has_metrics else []
    return Telemetry(tracers, MeterProvider(readers, resource))


def _has_endpoint(signal: str) -> bool:
    """Whether the environment names an endpoint for "TRACES" or "METRICS"."""
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", f"{signal}_"))
