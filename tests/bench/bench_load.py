"""Messages and tokens per second of a server, called by a compiled client and by Python's client.

Run by `make bench`, or by itself: `python tests/bench/bench_load.py [--rounds 5] [--concurrency 1 8 32 128]`. The
model is the bundled one, and requests ask for all cross-attention. One server runs; the clients take turns, and read
every message. The compiled client is the program in Go of client/examples, which is built first. Without a toolchain
for Go the script says so and ends. Client and server share the cores: what the client works, the server lacks. So the
table has the processor's time of both for each token too, which other programs on the machine disturb less. Figures are
medians of the rounds. Where the variable EXAMPLE_BUILDS names a folder, the build is kept there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import load_client
from example_programs import PROGRAMS, ToolchainError
from rich.console import Console
from rich.table import Table
from sidelight.server.models.loader import bundled_model
from workloads import Workload

TEXTS = [
    "Where did you buy that old book?",
    "I don't want to be your friend.",
    "My grandmother is still vigorous at 82 years old.",
    "The lazy dog does not want to work.",
    "She opened the window because it was too hot.",
    "Tom has never been to Boston.",
    "We have to be at the station at seven o'clock.",
    "Good morning!",
]


class Received(NamedTuple):
    """What a client received, in how many seconds, and the seconds of the processor that it has taken itself."""

    messages: int
    tokens: int
    seconds: float
    client_seconds: float


class Rate(NamedTuple):
    """Messages and tokens in a second, and the microseconds of the processor for each token."""

    messages: float
    tokens: float
    server: float
    client: float


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=256, help="requests of each run, at least twice the streams")
    args = parser.parse_args()
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = PROGRAMS["Go"].make(Path(os.environ.get("EXAMPLE_BUILDS") or folder, "go"))
        except ToolchainError as error:
            console.print(f"The program in Go cannot be built: {error}")
            return 0
        rates: dict[tuple[int, str], list[Rate]] = defaultdict(list)
        serve = [load_client.COMMAND, "serve", str(bundled_model()), "--name", "bundled"]
        with load_client.start_server(serve, {}) as (address, server):
            for _ in range(args.rounds + 1):
                for streams in args.concurrency:
                    requests = max(args.requests, 2 * streams)
                    for name, run in (("Go", partial(run_go, command)), ("Python", run_python)):
                        rates[streams, name].append(measure(server, partial(run, address, streams, requests)))
    console.print(table_of(rates, args.rounds))
    return 0


def measure(server: int, run: Callable[[], Received]) -> Rate:
    """Runs a client; adds what the process of the server has worked meanwhile."""
    before = load_client.server_seconds(server)
    messages, tokens, seconds, client_seconds = run()
    worked = load_client.server_seconds(server) - before
    return Rate(messages / seconds, tokens / seconds, 1e6 * worked / tokens, 1e6 * client_seconds / tokens)


def run_go(command: list[str], address: str, streams: int, requests: int) -> Received:
    """A run of the compiled client. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of processes that have ended: the server is not among them
    process = subprocess.run(
        [*command, "load", str(streams), str(requests)],
        env={**os.environ, "SIDELIGHT_ADDRESS": address},
        input=json.dumps(TEXTS),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    counts = json.loads(process.stdout)
    return Received(counts["messages"], counts["tokens"], counts["seconds"], worked)


def run_python(address: str, streams: int, requests: int) -> Received:
    """A run of Python's bare stubs on asyncio."""
    sources = [TEXTS[number % len(TEXTS)] for number in range(requests)]
    workload = Workload("load", "", bundled_model(), sources)
    axes = (3, 4)  # layers and heads of the bundled model
    before = time.process_time()
    seconds, answers = load_client.run(address, workload, streams, capture=load_client.EVERY_HEAD, axes=axes)
    worked = time.process_time() - before
    messages = sum(answer.messages for answer in answers)
    return Received(messages, sum(len(answer.target) for answer in answers), seconds, worked)


def table_of(rates: dict[tuple[int, str], list[Rate]], num_rounds: int) -> Table:
    """The medians of all rounds but the first, in which connections and caches are new."""
    columns = ("streams", "client", "messages/s", "tokens/s", "server µs/token", "client µs/token")
    table = Table(*columns, title=f"medians of {num_rounds} rounds")
    for (streams, name), found in rates.items():
        medians = [statistics.median(column) for column in zip(*found[1:], strict=True)]
        table.add_row(str(streams), name, *(f"{median:,.0f}" for median in medians))
    return table


if __name__ == "__main__":
    sys.exit(main())
