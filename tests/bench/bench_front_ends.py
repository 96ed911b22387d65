"""What front ends in processes of their own give: a server with them beside one without, on the bundled model.

    python tests/bench/bench_front_ends.py [--rounds 8] [--streams 1 8 32] [--frontends 2]

Both servers run side by side and take turns. Each stream has a connection of its own, since the kernel gives a whole
connection to one front end. Requests ask for all cross-attention, and for 32 tokens. The client, which parses every
message, is a process of its own on the same cores.

Figures are medians: the ratio of the times of each round, and milliseconds of the processor for each step: of the one
process; of the engine's process; of all front ends together. What the one process takes more than the engine's process
is the work of front ends that a third core would take over.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import load_client
from rich.console import Console
from rich.table import Table
from workloads import Workload, long_streams

# How often each server runs in a round.
_TURNS = 4


@dataclass(frozen=True)
class Server:
    """A server that takes its turn, and the processes that it has."""

    address: str
    engine: int
    front_ends: tuple[int, ...]


@dataclass(frozen=True)
class Spent:
    """What one run has taken, in seconds: time, and the processor's time of the engine's process and of front ends."""

    time: float
    engine: float
    front_ends: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="runs of each server at each number of streams")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    parser.add_argument("--frontends", type=int, default=2, metavar="N")
    args = parser.parse_args()
    columns = ("time", "one process: ms a step", "processor", "engine's process", "front ends", "with them: together")
    table = Table(f"{args.frontends} front ends beside one process, {args.rounds} rounds", *columns)
    with starting("1") as one, starting(str(args.frontends)) as many:
        for num_streams in args.streams:
            table.add_row(f"{num_streams} streams", *measure(one, many, num_streams, args.rounds))
    Console(width=150).print(table)
    return 0


@contextlib.contextmanager
def starting(frontends: str) -> Iterator[Server]:
    """Starts a server with one thread for the model: the other core is for messages."""
    command = [load_client.COMMAND, "serve", "--threads", "1", "--frontends", frontends]
    with load_client.start_server(command, {}) as (address, process):
        yield Server(address, process, tuple(child for each in children(process) for child in children(each)))


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for file in Path(f"/proc/{process}/task").glob("*/children") for pid in file.read_text().split()]


def measure(one: Server, many: Server, num_streams: int, rounds: int) -> list[str]:
    """A row of the table."""
    workload = long_streams(num_streams)
    assert workload.new_tokens is not None
    num_steps = num_streams * workload.new_tokens * _TURNS
    spent: defaultdict[Server, list[Spent]] = defaultdict(list)
    for number in range(rounds + 1):  # the first round warms
        for server in (one, many) if number % 2 else (many, one):
            run = spend(server, workload, num_streams)
            if number:
                spent[server].append(run)
        print(f"round {number}, {num_streams} streams", file=sys.stderr)
    ratio = statistics.median(b.time / a.time for a, b in zip(spent[one], spent[many], strict=True))

    def milliseconds(values: Iterator[float]) -> str:
        return f"{1000 * statistics.median(values) / num_steps:.3f}"

    return [
        f"{ratio:.2f}",
        milliseconds(run.time for run in spent[one]),
        milliseconds(run.engine for run in spent[one]),
        milliseconds(run.engine for run in spent[many]),
        milliseconds(run.front_ends for run in spent[many]),
        milliseconds(run.engine + run.front_ends for run in spent[many]),
    ]


def spend(server: Server, workload: Workload, num_streams: int) -> Spent:
    """Some runs of one server."""
    before = processor_seconds([server.engine]), processor_seconds(server.front_ends)
    seconds = 0.0
    for _ in range(_TURNS):
        seconds += load_client.run_apart(server.address, workload, num_streams)[0]
    engine, front_ends = processor_seconds([server.engine]), processor_seconds(server.front_ends)
    return Spent(seconds, engine - before[0], front_ends - before[1])


def processor_seconds(processes: list[int] | tuple[int, ...]) -> float:
    """The processor's seconds of all threads of some processes."""
    files = [file for process in processes for file in Path(f"/proc/{process}/task").glob("*/schedstat")]
    return sum(int(file.read_text(encoding="utf-8").split()[0]) for file in files) / 1e9


if __name__ == "__main__":
    sys.exit(main())
