"""Replicas on Ray Serve: tokens per second of one and of two replicas, beside `sidelight serve`.

    python tests/bench/bench_ray.py [--rounds 5] [--streams 1 8 32]

Two small clusters of this machine run side by side, one with one replica and one with two, each behind Ray's HAProxy.
They take turns with a server without Ray. All have one thread for the bundled model. Each stream has a connection of
its own, and asks for all cross-attention and for 32 tokens. The client is this process, on the same cores. Figures are
medians of the rounds. Without Ray (`pip install 'sidelight[ray]'`) the script says so and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import load_client
from ray_cluster import serving_on_ray
from rich.console import Console
from rich.table import Table
from workloads import long_streams

# How many texts each stream has in a round, one after the other.
_TURNS = 4
_COUNTS = {"one replica": 1, "two replicas": 2}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    args = parser.parse_args()
    console = Console(width=120)
    if importlib.util.find_spec("ray") is None:
        console.print("Ray is not installed: pip install 'sidelight[ray]'", markup=False)
        return 0
    columns = ("sidelight serve", *_COUNTS, "one replica / serve", "two / one")
    table = Table(f"tokens/s, medians of {args.rounds} rounds", *columns)
    with contextlib.ExitStack() as stack:
        addresses = dict(start(stack))
        for num_streams in args.streams:
            table.add_row(f"{num_streams} streams", *measure(addresses, num_streams, args.rounds))
    console.print(table)
    return 0


def start(stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    """Starts the server and the clusters. Gives their names and addresses."""
    command = [load_client.COMMAND, "serve", "--threads", "1"]
    yield "serve", stack.enter_context(load_client.start_server(command, {}))[0]
    for name, count in _COUNTS.items():
        scaling = {"autoscaling_config": {"min_replicas": count, "max_replicas": count}}
        cluster = stack.enter_context(serving_on_ray({"threads": 1}, scaling))
        cluster.wait_until_up(count)
        yield name, cluster.address


def measure(addresses: dict[str, str], num_streams: int, rounds: int) -> list[str]:
    """A row of the table."""
    workload = long_streams(num_streams, _TURNS)
    rates: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):  # the first round warms
        for name in sorted(addresses, reverse=bool(number % 2)):
            seconds, streams = load_client.run_apart(addresses[name], workload, num_streams)
            if number:
                rates[name].append(sum(len(stream.target) for stream in streams) / seconds)
        print(f"round {number}, {num_streams} streams", file=sys.stderr)

    def ratio(above: str, below: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True)):.2f}"

    one, two = _COUNTS
    return [
        *(f"{statistics.median(rates[name]):.0f}" for name in addresses),
        ratio(one, "serve"),
        ratio(two, one),
    ]


if __name__ == "__main__":
    sys.exit(main())
