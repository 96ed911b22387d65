"""What a scrape shows of calls and models, through a real server and a real port."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc
import pytest
from authorities import Authority, replace
from follow_driver import FollowDriver
from harness import CROSS, request, serving, steps_of, stub, wait_until
from prometheus_client.parser import text_string_to_metric_families
from sidelight.server.operations import MetricsAddressError, MetricsServer, metrics_server
from sidelight.server.operations.metrics import Histogram
from sidelight.v1 import attention_pb2, attribution_service_pb2, text_pb2

Scrape = Callable[..., float]
_METHOD = {"grpc_type": "server_stream", "grpc_service": "sidelight.v1.AttributionService", "grpc_method": "Attribute"}


@pytest.fixture
def scrape(observed) -> Scrape:
    """A function that reads one sample of the server's metrics, as Prometheus' own parser reads them."""

    def read(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(observed.read_metrics())
        samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
        return samples[name, frozenset(labels.items())]

    return read


def test_a_call_is_counted_by_its_messages_steps_and_bytes(observed, scrape, bundled):
    address = observed.address
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


def test_errors_are_counted_by_their_codes(observed, scrape):
    def counts() -> dict[str, float]:
        codes = ("NotFound", "InvalidArgument", "Cancelled", "DataLoss")
        return {code: scrape("grpc_server_handled_total", **_METHOD, grpc_code=code) for code in codes}

    before = counts()
    with stub(observed.address) as service:
        with pytest.raises(grpc.RpcError):
            list(service.Attribute(request("A dog.", model="no such model")))
        with pytest.raises(grpc.RpcError):
            list(service.Attribute(request("A dog.", request_id="\n")))
        call = service.Attribute(request("A dog. " * 20))
        next(call)
        call.cancel()
    wait_until(lambda: counts()["Cancelled"] > before["Cancelled"])
    grown = {code: count - before[code] for code, count in counts().items()}
    assert grown == {"NotFound": 1, "InvalidArgument": 1, "Cancelled": 1, "DataLoss": 0}


def test_gauges_follow_the_running_requests_and_stalls_are_counted(observed, scrape, bundled):
    address = observed.address
    model = {"model": bundled.name}
    assert scrape("sidelight_slots", **model) == 32
    wait_until(lambda: not scrape("sidelight_slots_used", **model))
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


def test_all_methods_are_there_before_their_first_call(scrape):
    labels = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Watch", "grpc_type": "server_stream"}
    assert scrape("grpc_server_started_total", **labels) == 0
    labels = _METHOD | {"grpc_method": "Follow", "grpc_type": "bidi_stream"}
    assert scrape("grpc_server_started_total", **labels) == 0
    assert scrape("process_resident_memory_bytes") > 1e6


def test_the_readme_has_each_metric_with_its_labels_and_its_description(observed):
    readme = (Path(__file__).parents[3] / "server" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:grpc_server|sidelight)_\w+)` \| (.*?) \| (.*?)(?:: a histogram\.)? \|$", readme, re.M)
    families = {
        family.name + "_total" * (family.type == "counter"): family
        for family in text_string_to_metric_families(observed.read_metrics())
        if family.name.startswith(("grpc_server", "sidelight"))
    }
    assert [name for name, _, _ in rows] == [*dict.fromkeys(name for name, _, _ in rows)]
    assert {name for name, _, _ in rows} == families.keys()
    for name, labels, text in rows:
        family = families[name]
        assert text.startswith(family.documentation.rstrip("."))
        if "the same" not in labels:
            expected = {label for sample in family.samples for label in sample.labels} - {"le"}
            assert {label.strip("`") for label in labels.split(", ")} == (
                expected or {"none" if family.samples else "model"}
            )


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


def test_beyond_this_machine_the_port_needs_a_certificate_or_a_word():
    with pytest.raises(MetricsAddressError, match=r"give --tls-cert and --tls-key.* or say --insecure"):
        MetricsServer("0.0.0.0:0")
    server = MetricsServer("0.0.0.0:0", insecure=True)
    assert server.url.startswith("http://0.0.0.0:")
    server.close()
    MetricsServer("localhost:0").close()


def test_a_renewed_certificate_is_taken_and_a_half_renewed_one_is_not(tmp_path):
    authorities = [Authority(tmp_path / name, name) for name in ("first", "second")]
    chain, key = authorities[0].issue("server")
    server = MetricsServer("0.0.0.0:0", (str(chain), str(key)))
    server.start([], [])
    url = server.url.replace("0.0.0.0", "127.0.0.1")

    def is_answered(authority: Authority) -> bool:
        try:
            context = ssl.create_default_context(cafile=authority.ca)
            return b"process_" in urllib.request.urlopen(url, timeout=10, context=context).read()
        except urllib.error.URLError as error:
            if "certificate verify failed" not in str(error):
                raise
            return False

    try:
        assert url.startswith("https://")
        assert [is_answered(authority) for authority in authorities] == [True, False]
        new_chain, new_key = authorities[1].issue("server")
        replace(chain, new_chain.read_bytes())
        assert [is_answered(authority) for authority in authorities] == [True, False]
        replace(key, new_key.read_bytes())
        assert [is_answered(authority) for authority in authorities] == [False, True]
        with socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0]))):  # it says nothing
            assert is_answered(authorities[1])
    finally:
        server.close()


def test_calls_with_a_wrong_token_are_counted_and_no_label_has_a_client(bundled, security, token_metadata):
    metrics = MetricsServer("127.0.0.1:0")
    with serving(bundled, security=security, metrics=metrics) as address:
        with stub(address) as service:
            for metadata in token_metadata.values():
                with contextlib.suppress(grpc.RpcError):
                    service.ListModels(attribution_service_pb2.ListModelsRequest(), metadata=metadata)

        def text() -> str:
            with urllib.request.urlopen(metrics.url, timeout=10) as answer:
                return answer.read().decode()

        def counts() -> dict[str, float]:
            return {
                sample.labels["grpc_code"]: sample.value
                for family in text_string_to_metric_families(text())
                for sample in family.samples
                if sample.name == "grpc_server_handled_total" and sample.labels["grpc_method"] == "ListModels"
            }

        wait_until(lambda: sum(counts().values()) == 2)  # a call is counted after its client has its status
        assert {code: count for code, count in counts().items() if count} == {"OK": 1, "Unauthenticated": 1}
        assert "someone" not in text()


def test_the_time_to_the_first_step_counts_units_and_leaves_out_streams_whose_client_decides(observed, scrape, bundled):
    count = lambda: scrape("sidelight_time_to_first_step_seconds_count", model=bundled.name)  # noqa: E731
    before = count()
    words = request("A dog sleeps.", [CROSS])
    words.capture.grouping = attention_pb2.GROUPING_WORD
    with stub(observed.address) as service:
        finished = list(service.Attribute(words))[-1].finished
        wait_until(lambda: count() == before + 1)
        assert finished.usage.total_time.ToNanoseconds() >= finished.usage.time_to_first_step.ToNanoseconds() > 0
        driver = FollowDriver(service)
        driver.add_source("A dog.")
        driver.add_text("Ein Hund")
        driver.finish()
    assert count() == before + 1


def test_while_models_are_loaded_a_scrape_gets_the_process_and_that_nothing_serves(scrape):
    metrics = MetricsServer("127.0.0.1:0")
    try:
        with urllib.request.urlopen(metrics.url, timeout=10) as answer:
            text = answer.read().decode()
        assert "sidelight_ready 0.0" in text
        assert "process_resident_memory_bytes" in text
        assert "grpc_server" not in text
    finally:
        metrics.close()
    assert scrape("sidelight_ready") == 1


def test_clients_that_do_not_go_on_are_ended_and_keep_nobody_out(monkeypatch):
    """Those that say nothing, those that send a byte now and then, and more of them than may connect."""
    monkeypatch.setattr(metrics_server, "_MAX_SECONDS", 1.0)
    num_threads = threading.active_count()
    metrics = MetricsServer("127.0.0.1:0")
    try:
        port = int(metrics.url.split(":")[2].split("/")[0])
        slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(60)]
        assert threading.active_count() <= num_threads + 1 + metrics_server._NUM_THREADS
        ended: set[int] = set()

        def send_a_byte() -> bool:
            for index, client in enumerate(slow):
                with contextlib.suppress(BlockingIOError):
                    try:
                        client.setblocking(False)
                        if index % 2:
                            client.send(b"G")
                        if not client.recv(1):
                            ended.add(index)
                    except (ConnectionError, BrokenPipeError):
                        ended.add(index)
            return len(ended) == len(slow)

        wait_until(send_a_byte)
        with urllib.request.urlopen(metrics.url, timeout=20) as answer:
            assert b"sidelight_ready" in answer.read()
    finally:
        metrics.close()
        for client in slow:
            client.close()
