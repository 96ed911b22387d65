"""`sidelight top`: what its tables say of a real server, of a busy one, and of none."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import cli_process
import numpy as np
import pytest
from authorities import Authority
from harness import CROSS, request, stub
from rich.cells import cell_len
from rich.console import Console
from sidelight.client.cli.main import main
from sidelight.server.entrypoints import top
from sidelight.server.entrypoints.top_figures import Scrape, compare, estimate_quantile
from sidelight.server.entrypoints.top_tables import render
from sidelight.server.operations import MetricsServer, ModelLoad, ModelMetrics

_METHOD = 'grpc_type="server_stream",grpc_service="sidelight.v1.AttributionService",grpc_method="Attribute"'


def busy_text(*, scale: float, started_at: float = 1e9, model: str = "opus") -> str:
    """The metrics of a busy server, in which everything that grows has grown by a factor."""
    gauges = {"slots": 4, "slots_used": 3, "requests_running": 5, "requests_preempted": 2, "requests_waiting": 12_345}
    lines = [f'sidelight_{name}{{model="{model}"}} {value}' for name, value in gauges.items()]
    counters = {
        f'sidelight_steps_total{{model="{model}",target="decoded"}}': 400,
        f'sidelight_steps_total{{model="{model}",target="given"}}': 100,
        f'sidelight_batch_size_sum{{model="{model}"}}': 400,
        f'sidelight_batch_size_count{{model="{model}"}}': 160,
        f'sidelight_reader_stalls_total{{model="{model}"}}': 30,
        f'sidelight_attention_bytes_total{{model="{model}"}}': 10 * 1024**2,
        f'sidelight_step_seconds_bucket{{model="{model}",le="0.004"}}': 0,
        f'sidelight_step_seconds_bucket{{model="{model}",le="0.008"}}': 160,
        f'sidelight_step_seconds_bucket{{model="{model}",le="+Inf"}}': 160,
        f"grpc_server_started_total{{{_METHOD}}}": 70,
        f'grpc_server_handled_total{{{_METHOD},grpc_code="OK"}}': 40,
        f'grpc_server_handled_total{{{_METHOD},grpc_code="Cancelled"}}': 10,
        f'grpc_server_handled_total{{{_METHOD},grpc_code="Internal"}}': 5,
        "process_cpu_seconds_total": 15,
    }
    lines += [f"{name} {value * scale}" for name, value in counters.items()]
    lines += [f"process_start_time_seconds {started_at}", "process_resident_memory_bytes 2147483648"]
    return "\n".join(lines) + "\n"


def scrape_at(time: float, text: str) -> Scrape:
    scrape = Scrape(text)
    scrape.time = time
    return scrape


def lines_of(figures, width: int = 80, problem: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(figures, "127.0.0.1:9464", problem))
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def words_of(lines: Sequence[str], beginning: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(beginning)]
    return line.split()


def test_the_tables_have_the_change_between_two_scrapes():
    figures = compare(scrape_at(110.0, busy_text(scale=3)), scrape_at(100.0, busy_text(scale=1)))
    lines = lines_of(figures)
    assert max(map(cell_len, lines)) <= 80
    assert "memory 2.0 GiB" in lines[0]
    assert "processor 300%" in lines[0]
    # 3 · (70 - 55) calls are open; in 10 seconds 2 · 70 began and 2 · 5 failed.
    assert words_of(lines, "Attribute") == ["Attribute", "45", "14.0", "1.0", "-", "-"]
    requests, steps = ([line for line in lines if line.startswith("opus")][index].split() for index in (0, 1))
    assert requests == ["opus", "3/4", "5", "2", "12,345", "6.0", "0", "B", "-"]
    # All steps took 4 to 8 ms: in the middle 6 ms, and 7.8 ms for 95 of 100.
    assert steps == ["opus", "100", "2.5", "6.0", "ms", "7.8", "ms", "-", "-", "2", "MiB"]


def test_a_name_cannot_change_the_terminal_or_the_width():
    text = busy_text(scale=1, model="a\x1b[31m" + "very-long-name" * 9)
    lines = lines_of(compare(scrape_at(1.0, text), scrape_at(0.0, text)), problem="\x1b[2Jgone")
    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert any(line.endswith("gone") for line in lines)


def test_quantiles_lie_in_the_bucket_of_the_real_ones():
    generator = np.random.default_rng(7)
    bounds = [0.001 * 2**index for index in range(12)]
    for _ in range(50):
        values = generator.gamma(generator.uniform(0.5, 5), 0.05, size=int(generator.integers(1, 400)))
        buckets = {bound: float((values <= bound).sum()) for bound in [*bounds, float("inf")]}
        for quantile in (0.5, 0.95):
            real = float(np.quantile(values, quantile, method="inverted_cdf"))
            estimate = estimate_quantile(buckets, quantile)
            assert estimate is not None
            upper = next((bound for bound in bounds if bound >= real), bounds[-1])
            assert upper / 2 <= max(estimate, bounds[0]) <= upper
    assert estimate_quantile({0.1: 0.0, float("inf"): 0.0}, 0.5) is None
    assert estimate_quantile({}, 0.5) is None


def test_a_real_server_has_its_figures_in_the_tables(observed, bundled, monkeypatch, capsys):
    read_scrape, scrapes = top._Source.read, []

    def read(source: top._Source) -> Scrape:
        if scrapes:  # between the two scrapes
            with stub(observed.address) as service:
                list(service.Attribute(request("A dog sleeps.", [CROSS])))
        scrapes.append(read_scrape(source))
        return scrapes[-1]

    monkeypatch.setattr(top._Source, "read", read)
    monkeypatch.setattr(top, "_INTERVAL", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["top", "--metrics", observed.metrics_url, "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    call = words_of(lines, "Attribute ")
    assert float(call[2]) > 0
    assert call[-1] in ("ms", "s")
    requests, steps = ([line for line in lines if line.startswith(bundled.name)][index].split() for index in (0, 1))
    assert requests[1] == "0/32"
    assert float(steps[1].replace(",", "")) > 0
    assert steps[2] == "1.0"
    assert "-" not in steps


@contextlib.contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server of something else; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("body", [b"<html>", b"up 1\n", b"\xff", b""])
def test_a_page_of_something_else_is_refused_in_one_line(body, capsys):
    with answering(body) as address:
        assert main(["top", "--metrics", address, "--once"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"sidelight: no metrics at http://{address}/metrics: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("address", ["nonsense", "http://", "ftp://127.0.0.1:1/x", "127.0.0.1:x"])
def test_a_wrong_address_is_refused_in_one_line(address, capsys):
    assert main(["top", "--metrics", address]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sidelight: no metrics at ")
    assert error.count("\n") == 1


def test_metrics_are_read_by_https_where_an_authority_is_given(tmp_path, monkeypatch, capsys):
    authority, other = (Authority(tmp_path / name, name) for name in ("one", "other"))
    chain, key = authority.issue("server")
    metrics = MetricsServer("127.0.0.1:0", (str(chain), str(key)))
    metrics.start([], [ModelMetrics("opus", ModelLoad)])
    monkeypatch.setattr(top, "_INTERVAL", 0.0)
    address = metrics.url.split("/")[2]
    try:
        assert main(["top", "--metrics", address, "--tls-ca", str(authority.ca), "--once"]) == 0
        assert "opus" in capsys.readouterr().out
        assert main(["top", "--metrics", metrics.url, "--tls-ca", str(other.ca)]) == 1
        assert "certificate verify failed" in capsys.readouterr().err
        assert main(["top", "--metrics", address, "--tls-ca", str(key)]) == 1
        assert capsys.readouterr().err.startswith(f"sidelight: --tls-ca: {key}: ")
    finally:
        metrics.close()


def test_where_no_server_answers_one_line_says_so(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert main(["top", "--metrics", address]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"sidelight: no metrics at http://{address}/metrics: Connection refused; "
        "a server has them with --metrics-address\n"
    )


def test_the_live_view_goes_on_while_the_server_is_away_and_begins_anew_with_a_new_process(monkeypatch):
    new = [busy_text(scale=scale, started_at=1.5e9) for scale in (0, 1)]
    texts = iter([busy_text(scale=1), busy_text(scale=2), None, *new])
    shown: list[str] = []

    def read(source: top._Source) -> Scrape:
        try:
            text = next(texts)
        except StopIteration:
            raise KeyboardInterrupt from None
        if text is None:
            raise top._UnavailableError(f"no metrics at {source.address}")
        return scrape_at(len(shown), text)

    def show(figures, _: str, problem: str = "") -> str:
        shown.append("\n".join(lines_of(figures, problem=problem)))
        return shown[-1]

    monkeypatch.setattr(top._Source, "read", read)
    monkeypatch.setattr(top, "_INTERVAL", 0.0)
    monkeypatch.setattr("sidelight.server.entrypoints.top_tables.render", show)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["top", "--metrics", "place:1"]) == 130
    assert ["no metrics at place:1" in text for text in shown] == [False, False, True, False, False]
    rates = [next(line.split()[2] for line in text.splitlines() if line.startswith("Attribute")) for text in shown[:3]]
    assert float(rates[1]) == float(rates[2]) > 0
    assert "Attribute" not in shown[3]  # no call has begun in the new process
    assert float(next(line.split()[2] for line in shown[4].splitlines() if line.startswith("Attribute"))) > 0


@pytest.mark.slow
def test_top_in_a_pipe_prints_once(observed):
    completed = cli_process.run("top", "--metrics", observed.metrics_url)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith(f"sidelight at {observed.metrics_url}   up ")
    assert "\x1b" not in completed.stdout
