"""What OpenTelemetry records of calls, through a real server, and what a collector gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import follow_driver
import grpc
import pytest
from harness import CROSS, request, serving, stub, wait_until
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from otlp_collector import collecting
from sidelight.client import AsyncClient, Client
from sidelight.server.operations import Telemetry, make_telemetry
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.v1 import attribution_service_pb2, text_pb2

_METHOD = "sidelight.v1.AttributionService/Attribute"
_TRACE, _PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass
class Recorded:
    """A server that records in memory."""

    address: str
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader

    def attribute(self, message: Any, flags: str = "01") -> None:
        """Sends a request below a span of the client, and takes all responses."""
        with stub(self.address) as service:
            list(service.Attribute(message, metadata=[("traceparent", f"00-{_TRACE}-{_PARENT}-{flags}")]))

    def spans(self, count: int) -> dict[str, ReadableSpan]:
        """Waits for as many spans; gives them by name."""
        wait_until(lambda: len(self.exporter.get_finished_spans()) >= count)
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self) -> dict[str, list[Any]]:
        """All points of the metrics, by name."""
        data: Any = self.reader.get_metrics_data()
        scopes = data.resource_metrics[0].scope_metrics
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


@pytest.fixture(scope="module")
def server(bundled) -> Iterator[Recorded]:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(bundled, telemetry=Telemetry(tracers, MeterProvider([reader]))) as address:
        yield Recorded(address, exporter, reader)


@pytest.fixture
def recorded(server) -> Recorded:
    """The server, with no span so far."""
    server.exporter.clear()
    return server


def test_a_call_has_a_span_below_the_clients_and_its_request_has_three(recorded, bundled):
    recorded.attribute(request("A dog sleeps.", [CROSS], request_id="my-id"))
    spans = recorded.spans(4)
    assert set(spans) == {_METHOD, "queue", "read source", "steps"}
    call = spans[_METHOD]
    assert call.kind is SpanKind.SERVER
    assert format(call.context.trace_id, "032x") == _TRACE
    assert call.parent is not None
    assert format(call.parent.span_id, "016x") == _PARENT
    assert dict(call.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": _METHOD,
        "rpc.response.status_code": "OK",
    }
    stages = [spans[name] for name in ("queue", "read source", "steps")]
    for stage in stages:
        assert stage.parent is not None
        assert stage.parent.span_id == call.context.span_id
        assert dict(stage.attributes or {}) == {
            "gen_ai.request.model": bundled.name,
            "sidelight.request_id": "my-id",
        }
    times = [time for stage in stages for time in (stage.start_time, stage.end_time)]
    assert None not in times
    assert times == sorted(times, key=lambda time: time or 0)
    slack = 5_000_000  # nanoseconds: the spans of a request are placed by another clock
    assert all(abs(stages[i].end_time - stages[i + 1].start_time) < slack for i in (0, 1))
    assert stages[1].end_time > stages[1].start_time
    assert stages[2].end_time > stages[2].start_time


def test_a_follow_stream_has_spans_too(recorded):
    events = [follow_driver.start(request_id="mine"), follow_driver.event(source=follow_driver.text("A dog."))]
    with stub(recorded.address) as service:
        list(service.Follow(iter(events)))
    spans = recorded.spans(4)
    assert set(spans) == {_METHOD.replace("Attribute", "Follow"), "queue", "read source", "steps"}
    assert spans["read source"].end_time == spans["steps"].start_time
    assert spans["steps"].end_time > spans["steps"].start_time
    assert (spans["steps"].attributes or {})["sidelight.request_id"] == "mine"


def test_the_prompt_of_a_decoder_is_a_source(zoo):
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    model = zoo("gpt2")
    decoding = text_pb2.Decoding(max_new_tokens=2)
    with serving(model, telemetry=Telemetry(tracers, MeterProvider())) as address, stub(address) as service:
        list(service.Attribute(request("A dog sleeps. " * 5, decoding=decoding)))
        wait_until(lambda: len(exporter.get_finished_spans()) == 4)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["read source"].end_time == spans["steps"].start_time
    assert spans["read source"].end_time - spans["read source"].start_time > 100_000  # nanoseconds, of a forward pass


def test_the_span_of_a_call_names_its_client(bundled, security, token_metadata):
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(bundled, security=security, telemetry=Telemetry(tracers, MeterProvider())) as address:
        with stub(address) as service:
            for metadata in token_metadata.values():
                with contextlib.suppress(grpc.RpcError):
                    service.ListModels(attribution_service_pb2.ListModelsRequest(), metadata=metadata)
        wait_until(lambda: len(exporter.get_finished_spans()) == 2)
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    ends = {span["rpc.response.status_code"]: span.get("enduser.id") for span in spans}
    assert ends == {"OK": "someone", "UNAUTHENTICATED": None}


def test_a_given_target_has_no_span_for_its_source(recorded):
    message = request("A dog.", [CROSS])
    message.given.text = "Ein Hund."
    recorded.attribute(message)
    assert set(recorded.spans(3)) == {_METHOD, "queue", "steps"}


def test_what_the_client_does_not_sample_is_not_recorded(recorded):
    recorded.attribute(request("A dog."), flags="00")
    recorded.attribute(request("A dog.", request_id="sampled"))
    recorded.spans(4)
    spans = recorded.exporter.get_finished_spans()
    assert len(spans) == 4
    assert {(span.attributes or {}).get("sidelight.request_id", "sampled") for span in spans} == {"sampled"}


@pytest.mark.parametrize(("model", "code", "is_fault"), [("other", "NOT_FOUND", False), ("", "INTERNAL", True)])
def test_only_faults_of_the_server_are_errors(recorded, monkeypatch, model, code, is_fault):
    monkeypatch.setattr(ModelRunner, "add", lambda *_, **__: 1 / 0)
    with pytest.raises(grpc.RpcError):
        recorded.attribute(request("A dog.", model=model))
    spans = recorded.spans(3 if is_fault else 1)
    failed = {_METHOD, "steps"} if is_fault else set()
    assert {name for name, span in spans.items() if span.status.status_code is StatusCode.ERROR} == failed
    assert {name for name, span in spans.items() if "error.type" in (span.attributes or {})} == failed
    assert (spans[_METHOD].attributes or {})["rpc.response.status_code"] == code


def test_the_two_metrics_count_calls_that_are_not_sampled(bundled):
    reader = InMemoryMetricReader()
    with serving(bundled, telemetry=Telemetry(TracerProvider(), MeterProvider([reader]))) as address:
        recorded = Recorded(address, InMemorySpanExporter(), reader)
        for _ in range(2):
            recorded.attribute(request("A dog."), flags="00")
        wait_until(lambda: recorded.points()["rpc.server.call.duration"][0].count == 2)
        points = recorded.points()
    (call,), (first_token,) = points["rpc.server.call.duration"], points["gen_ai.server.time_to_first_token"]
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert first_token.attributes["gen_ai.request.model"] == bundled.name
    assert first_token.count == 2
    assert 0 < first_token.sum < 60


@pytest.mark.parametrize(
    ("signals", "names"),
    [
        ("", {"call", "rpc.server.call.duration"}),
        ("_TRACES", {"call"}),
        ("_METRICS", {"rpc.server.call.duration"}),
    ],
)
def test_a_collector_gets_what_its_endpoint_is_for(monkeypatch, signals, names):
    with collecting() as (collector, endpoint):
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP{signals}_ENDPOINT", endpoint)
        telemetry = make_telemetry("1.2")
        assert telemetry is not None
        telemetry.end_call("call", telemetry.begin_call("call", {}), "OK", 0.5)
        telemetry.close()
    assert collector.names == names
    assert collector.services == {"sidelight 1.2"}


def test_without_an_endpoint_there_is_no_telemetry(monkeypatch):
    for name in ("", "_TRACES", "_METRICS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP{name}_ENDPOINT", raising=False)
    assert make_telemetry("1.2") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert make_telemetry("1.2") is None


def test_a_call_of_the_python_client_is_below_the_span_of_its_caller(recorded):
    """Of both clients, and without a span none is claimed."""

    async def attribute() -> None:
        async with AsyncClient(recorded.address) as client:
            await client.attribute("A dog.").result()

    tracer = TracerProvider().get_tracer("caller")
    with tracer.start_as_current_span("caller") as caller:
        with Client(recorded.address) as client:
            client.attribute("A dog.").result()
            client.get_model()
        asyncio.run(attribute())
    with Client(recorded.address) as client:
        client.list_models()
    wait_until(lambda: sum(span.kind is SpanKind.SERVER for span in recorded.exporter.get_finished_spans()) == 4)
    *below, alone = [span for span in recorded.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    assert [span.parent.span_id for span in below] == [caller.get_span_context().span_id] * 3
    assert {span.context.trace_id for span in below} == {caller.get_span_context().trace_id}
    assert alone.parent is None
