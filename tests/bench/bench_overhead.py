"""What metrics, traces and tokens cost: times and processor times of a server with them, divided by those without.

Run by `make bench`, or by itself: `python tests/bench/bench_overhead.py [--rounds 12] [--concurrency 1 8 32]`. The
model is a random one of opus-mt's size; requests ask for all cross-attention. Three servers run side by side and take
turns:

- bare: the counters of the metrics are replaced by functions that do nothing;
- counters: a server without options, which counts, but has no port for metrics;
- all: a port for metrics that is read every five seconds, spans for one call in a hundred, and a token for each call.

Figures are medians of the ratios of each round. The processor time is that of all threads of the server. The script
also prints the processor time of each part by itself (`overhead_parts.py`), which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import load_client
import overhead_parts
from otlp_collector import collecting
from rich.console import Console
from rich.table import Table
from workloads import Workload, opus_workload

LAYERS, HEADS = 6, 8
_TOKEN = "a-token-of-thirty-two-characters"
_TOKENS = "tokens.toml"
_METRICS_ADDRESS = "127.0.0.1:19464"
_SCRAPE_SECONDS = 5.0

# Starts a server that counts nothing.
_BARE = """
import sys
from sidelight.client.cli.main import main
from sidelight.server.operations.metrics import Histogram, MethodMetrics, ModelMetrics

def nothing(*arguments): pass

for kind, name in ((Histogram, "observe"), (MethodMetrics, "record_end"), (ModelMetrics, "record_step"),
                   (ModelMetrics, "record_stall"), (ModelMetrics, "record_first_step")):
    setattr(kind, name, nothing)
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Server:
    """A server that takes its turn."""

    address: str
    process: int
    metadata: tuple[tuple[str, str], ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="runs of each server at each number of streams")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    parser.add_argument("--threads", type=int, help="the number of threads of each server's model")
    args = parser.parse_args()
    columns = ("counters, time", "counters, processor", "all, time", "all, processor")
    table = Table(f"times bare, {args.rounds} rounds", *columns, "bare: ms a step")
    options = [] if args.threads is None else ["--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / _TOKENS
        tokens.write_text(f'[bench]\ntokens = ["{_TOKEN}"]\n', encoding="utf-8")
        for name, microseconds in overhead_parts.measure_parts(tokens, _TOKEN).items():
            print(f"{name}: {microseconds:.1f} microseconds")
        workload = opus_workload(Path(folder) / "opus", max(args.concurrency))
        with starting(workload, Path(folder), options) as servers:
            for concurrency in args.concurrency:
                ratios, milliseconds = measure(servers, workload, concurrency, args.rounds)
                figures = [f"{ratios[name, kind]:.3f}" for name in ("counters", "all") for kind in (0, 1)]
                table.add_row(f"{concurrency} streams", *figures, f"{milliseconds:.1f}")
    Console(width=130).print(table)
    return 0


@contextlib.contextmanager
def starting(workload: Workload, folder: Path, options: list[str]) -> Iterator[dict[str, Server]]:
    """Starts the three servers, and reads the metrics of the last one."""
    serve = ["serve", str(workload.folder), *options]
    with contextlib.ExitStack() as stack:
        _, endpoint = stack.enter_context(collecting())
        tracing = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
        security = ["--tokens", str(folder / _TOKENS), "--metrics-address", _METRICS_ADDRESS]
        servers = {
            "bare": Server(*stack.enter_context(load_client.start_server([sys.executable, "-c", _BARE, *serve], {}))),
            "counters": Server(*stack.enter_context(load_client.start_server([load_client.COMMAND, *serve], {}))),
            "all": Server(
                *stack.enter_context(load_client.start_server([load_client.COMMAND, *serve, *security], tracing)),
                (("authorization", f"Bearer {_TOKEN}"),),
            ),
        }
        is_over = threading.Event()
        scraper = threading.Thread(target=scrape, args=(is_over,))
        scraper.start()
        try:
            yield servers
        finally:
            is_over.set()
            scraper.join()


def scrape(is_over: threading.Event) -> None:
    """Reads the metrics again and again, as Prometheus does."""
    while not is_over.wait(_SCRAPE_SECONDS):
        with urllib.request.urlopen(f"http://{_METRICS_ADDRESS}/metrics", timeout=60) as answer:
            answer.read()


def measure(
    servers: dict[str, Server], workload: Workload, concurrency: int, rounds: int
) -> tuple[dict[tuple[str, int], float], float]:
    """The median ratios to the bare server, 0: of times, 1: of processor times; and the bare server's ms a step."""
    ratios: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    milliseconds: list[float] = []
    for number in range(rounds + 1):  # the first round warms
        names = [*servers]
        turned = names[number % len(names) :] + names[: number % len(names)]
        spent = {name: run(servers[name], workload, concurrency) for name in turned}
        if number:
            milliseconds.append(1000 * spent["bare"][0] / (workload.new_tokens or 1) / workload.turns)
            for name in names:
                for kind in (0, 1):
                    ratios[name, kind].append(spent[name][kind] / spent["bare"][kind])
        text = ", ".join(f"{name} {spent[name][0]:.2f} s ({spent[name][1]:.2f} s)" for name in names)
        print(f"round {number}, {concurrency} streams: {text}", file=sys.stderr)
    return {key: statistics.median(values) for key, values in ratios.items()}, statistics.median(milliseconds)


def run(server: Server, workload: Workload, concurrency: int) -> tuple[float, float]:
    """The seconds, and the processor's seconds, of some runs."""
    seconds, began = 0.0, processor_seconds(server.process)
    for _ in range(workload.turns):
        seconds += load_client.run(
            server.address,
            workload,
            concurrency,
            capture=load_client.EVERY_HEAD,
            axes=(LAYERS, HEADS),
            metadata=server.metadata,
        )[0]
    return seconds, processor_seconds(server.process) - began


def processor_seconds(process: int) -> float:
    """The processor's seconds of the threads that a process has."""
    files = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(file.read_text(encoding="utf-8").split()[0]) for file in files) / 1e9


if __name__ == "__main__":
    sys.exit(main())
