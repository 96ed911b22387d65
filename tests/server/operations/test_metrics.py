"""What a scrape shows of calls and models, through a real server and a real port."""

from __future__ import annotations

import asyncio
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import cast

import grpc
import pytest
from harness import CROSS, request, steps_of, stub, wait_until
from prometheus_client.parser import text_string_to_metric_families
from sidelight.server.api.server import Server
from sidelight.server.operations import MetricsAddressError, MetricsServer
from sidelight.server.operations.metrics import Histogram
from sidelight.v1 import attribution_service_pb2, text_pb2

Scrape = Callable[..., float]
_METHOD = {"grpc_type": "server_stream", "grpc_service": "sidelight.v1.AttributionService", "grpc_method": "Attribute"}


def read_samples(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of a scrape, by name and labels, as Prometheus' own parser reads them."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture(scope="module")
def observed(bundled) -> Iterator[tuple[str, Scrape]]:
    """A server's address, and a function that scrapes one sample of its metrics."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    metrics_server = MetricsServer("127.0.0.1:0")

    async def start() -> tuple[Server, str]:
        server = Server([bundled], "127.0.0.1:0")
        return server, await server.start()

    def scrape(name: str, **labels: str) -> float:
        return read_samples(metrics_server.address)[name, frozenset(labels.items())]

    server, address = asyncio.run_coroutine_threadsafe(start(), loop).result(240)
    metrics_server.start(server.method_metrics, server.model_metrics)
    yield address, scrape
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(60)
    metrics_server.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_call_is_counted_by_its_messages_steps_and_bytes(observed, bundled):
    address, scrape = observed
    model = {"model": bundled.name}
    read = {
        "started": lambda: scrape("grpc_server_started_total", **_METHOD),
        "received": lambda: scrape("grpc_server_msg_received_total", **_METHOD),
        "sent": lambda: scrape("grpc_server_msg_sent_total", **_METHOD),
        "handled": lambda: scrape("grpc_server_handling_seconds_count", **_METHOD),
        "steps": lambda: scrape("sidelight_steps_total", **model, target="decoded"),
        "given": lambda: scrape("sidelight_steps_total", **model, target="given"),
        "bytes": lambda: scrape("sidelight_attention_bytes_total", **model),
        "batches": lambda: scrape("sidelight_batch_size_sum", **model),
        "first": lambda: scrape("sidelight_time_to_first_step_seconds_count", **model),
        "queue": lambda: scrape("sidelight_queue_seconds_count", **model),
    }
    before = {name: value() for name, value in read.items()}
    with stub(address) as service:
        responses = list(service.Attribute(request("A dog sleeps.", [CROSS])))
        given = list(service.Attribute(request("A dog.", [CROSS], given=text_pb2.Text(text="Ein Hund."))))
    wait_until(lambda: read["handled"]() == before["handled"] + 2)
    grown = {name: value() - before[name] for name, value in read.items()}
    decoded, read_steps = steps_of(responses), steps_of(given)
    usage = [each[-1].finished.usage.attention_bytes for each in (responses, given)]
    assert usage[0] > 0
    assert grown == {
        "started": 2,
        "received": 2,
        "sent": len(responses) + len(given),
        "handled": 2,
        "steps": len(decoded),
        "given": len(read_steps),
        "bytes": sum(usage),
        "batches": len(decoded),
        "first": 2,
        "queue": 2,
    }
    assert scrape("grpc_server_handled_total", **_METHOD, grpc_code="OK") >= 2


def test_errors_are_counted_by_their_codes(observed):
    address, scrape = observed
    with stub(address) as service:
        with pytest.raises(grpc.RpcError):
            list(service.Attribute(request("A dog.", model="no such model")))
        with pytest.raises(grpc.RpcError):
            list(service.Attribute(request("A dog.", request_id="\n")))
        call = service.Attribute(request("A dog. " * 20))
        next(call)
        call.cancel()
    wait_until(lambda: _has(scrape, "Cancelled"))
    assert scrape("grpc_server_handled_total", **_METHOD, grpc_code="NotFound") == 1
    assert scrape("grpc_server_handled_total", **_METHOD, grpc_code="InvalidArgument") == 1


def _has(scrape: Scrape, code: str) -> bool:
    try:
        return scrape("grpc_server_handled_total", **_METHOD, grpc_code=code) > 0
    except KeyError:
        return False


def test_gauges_follow_the_running_requests_and_stalls_are_counted(observed, bundled):
    address, scrape = observed
    model = {"model": bundled.name}
    assert scrape("sidelight_slots", **model) == 32
    assert scrape("sidelight_slots_used", **model) == 0
    stalls = scrape("sidelight_reader_stalls_total", **model)
    decoding = text_pb2.Decoding(max_new_tokens=200, min_new_tokens=200)
    message = request("A dog sleeps in the garden. " * 20, [CROSS], decoding=decoding)
    channel_options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(address, options=channel_options) as channel:
        attribute = channel.unary_stream(
            "/sidelight.v1.AttributionService/Attribute",
            request_serializer=attribution_service_pb2.AttributeRequest.SerializeToString,
            response_deserializer=attribution_service_pb2.AttributeResponse.FromString,
        )
        call = attribute(message)  # nobody reads
        wait_until(
            lambda: scrape("sidelight_requests_running", **model) + scrape("sidelight_requests_preempted", **model)
        )
        wait_until(lambda: scrape("sidelight_reader_stalls_total", **model) == stalls + 1)
        cast(grpc.Call, call).cancel()
    wait_until(lambda: not scrape("sidelight_slots_used", **model))
    assert scrape("sidelight_cache_bytes", **model) == 32 * bundled.backend.bytes_per_slot


def test_all_methods_are_there_before_their_first_call(observed):
    _, scrape = observed
    labels = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch", "grpc_type": "server_stream"}
    assert scrape("grpc_server_started_total", **labels) == 0
    labels = _METHOD | {"grpc_method": "Follow", "grpc_type": "bidi_stream"}
    assert scrape("grpc_server_started_total", **labels) == 0
    assert scrape("process_resident_memory_bytes") > 1e6


def test_buckets_hold_what_is_at_most_their_bound():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulative() == [(1.0, 2), (2.0, 4), (float("inf"), 5)]
    assert histogram.sum == 7.5


@pytest.mark.parametrize("address", ["9090", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "192.0.2.1:1"])
def test_a_wrong_address_is_refused_by_its_option(address):
    with pytest.raises(MetricsAddressError, match="--metrics-address"):
        MetricsServer(address)
