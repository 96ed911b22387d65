"""What operators see of `sidelight serve`, a process of its own: its metrics, its log, its spans."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import cli_process
import grpc
import pytest
from harness import request, stub
from otlp_collector import collecting
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.slow

SECRET = "a text that nobody else may read"
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def read_log(path: Path) -> list[dict[str, str]]:
    """The lines of a log, each a JSON object."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def serving_with_metrics(log: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process of a server whose log is a file: the process, its address, and the URL of its metrics."""
    options = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", "--log-format", "json"]
    command = [cli_process.COMMAND, "serve", *options, "--log-level", "debug"]
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    with (
        log.open("w") as file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, cwd="/", env=variables) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            (url,) = [line["message"].split()[-1] for line in read_log(log) if "metrics at" in line["message"]]
            yield process, address, url
        finally:
            process.kill()


def test_a_server_shows_a_call_in_its_metrics_its_spans_and_its_log(tmp_path):
    log = tmp_path / "log"
    with (
        collecting() as (collector, endpoint),
        serving_with_metrics(log, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as (process, address, url),
    ):
        metadata = [("traceparent", f"00-{_TRACE}-00f067aa0ba902b7-01")]
        with stub(address) as service:
            list(service.Attribute(request(SECRET, request_id="mine"), metadata=metadata))
            with pytest.raises(grpc.RpcError):
                list(service.Attribute(request(SECRET, model="other")))
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    samples = {
        (sample.name, sample.labels.get("grpc_code", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("grpc_method", "Attribute") == "Attribute"
    }
    assert samples["grpc_server_started_total", ""] == 2
    assert samples["grpc_server_handled_total", "OK"] == samples["grpc_server_handled_total", "NotFound"] == 1
    assert samples["sidelight_time_to_first_step_seconds_count", ""] == 1
    assert samples["sidelight_slots", ""] == 32
    lines = read_log(log)
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert {line["level"] for line in lines} >= {"debug", "info"}
    assert SECRET not in log.read_text() + text
    assert collector.trace_ids >= {_TRACE}
    stages = {"queue", "read source", "steps"}
    metrics = {"rpc.server.call.duration", "gen_ai.server.time_to_first_token"}
    assert collector.names == {"sidelight.v1.AttributionService/Attribute"} | stages | metrics
    assert collector.services == {f"sidelight {importlib.metadata.version('sidelight')}"}


def test_a_port_that_is_taken_ends_the_start_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        completed = cli_process.run("serve", "--address", "127.0.0.1:0", "--metrics-address", address)
    assert completed.returncode == 1
    assert completed.stderr == f"sidelight: --metrics-address: cannot listen on {address}: Address already in use\n"
