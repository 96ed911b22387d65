"""Clients with tokens: a request behind many others, of another client and of its own; and how long refused calls take.

The model is the bundled one. The measured requests are as short as possible.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sidelight.client import Client, UnauthenticatedError
from sidelight.server.models import load
from sidelight.server.operations import Security, TokenFile

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from harness import serving

TOKENS = {name: f"token-of-the-client-{name}" for name in ("many", "one", "old", "wrong")}
FILE = f"""
[many]
tokens = ["{TOKENS["many"]}"]
[one]
tokens = ["{TOKENS["one"]}"]
[old]
tokens = ["{TOKENS["old"]}"]
expires = 2020-01-01T00:00:00Z
"""

LONG = "My grandmother is still vigorous at 82 years old. " * 3


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with a full queue")
    parser.add_argument("--waiting", type=int, default=1000, help="requests that wait before")
    parser.add_argument("--calls", type=int, default=500, help="refused calls of each kind")
    args = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.toml"
        path.write_text(FILE, encoding="utf-8")
        with serving(load(), security=Security(tokens=TokenFile(str(path)))) as address:
            console.print(_measure_waits(address, args.rounds, args.waiting))
            console.print(_measure_refusals(address, args.calls))
    return 0


def _measure_waits(address: str, num_rounds: int, num_waiting: int) -> Table:
    """Measures one request alone, behind the requests of another client, and behind requests of its own client."""
    kinds = {"nothing": None, f"{num_waiting:,} of another client": "many", f"{num_waiting:,} of its own": "one"}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with Client(address, token=TOKENS["one"]) as client:
        for _ in range(num_rounds):
            for kind, other in kinds.items():
                seconds[kind].append(_time_behind(address, client, other, num_waiting))
    table = Table("a request waits behind", f"seconds, median of {num_rounds}")
    for kind, values in seconds.items():
        table.add_row(kind, f"{statistics.median(values):.2f}")
    return table


def _time_behind(address: str, client: Client, other: str | None, num_waiting: int) -> float:
    if other is None:
        return _time_request(client)
    with Client(address, token=TOKENS[other]) as busy:
        streams = [busy.attribute(LONG) for _ in range(num_waiting)]
        assert streams[-1].started  # all have arrived, and most wait
        seconds = _time_request(client)
        for stream in streams:
            stream.cancel()
    return seconds


def _time_request(client: Client) -> float:
    begin = time.perf_counter()
    client.attribute("A dog.").result()
    return time.perf_counter() - begin


def _measure_refusals(address: str, num_calls: int) -> Table:
    """Measures refused calls, the kinds in turn."""
    kinds = {"absent": "", "wrong": TOKENS["wrong"], "expired": TOKENS["old"]}
    clients = {kind: Client(address, token=token) for kind, token in kinds.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(num_calls):
        for kind, client in clients.items():
            begin = time.perf_counter()
            try:
                client.list_models()
            except UnauthenticatedError:
                seconds[kind].append(time.perf_counter() - begin)
    for client in clients.values():
        client.close()
    table = Table("token", "ms of a refused call: median", "middle half")
    for kind, values in seconds.items():
        first, middle, third = (f"{value * 1e3:.2f}" for value in statistics.quantiles(values, n=4))
        table.add_row(kind, middle, f"{first} to {third}")
    return table


if __name__ == "__main__":
    sys.exit(main())
