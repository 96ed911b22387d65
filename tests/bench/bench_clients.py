"""Clients with tokens: requests behind those of others, requests beside a flood, and how long refused calls take.

The model is the bundled one. The flood comes from a process of its own: it keeps many requests open, and sends a new
one for each that ends or is refused. Times beside it are percentiles, and take turns with times without it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sidelight.client import AsyncClient, Client, ResourceExhaustedError, UnauthenticatedError
from sidelight.server.models import bundled_model, load
from sidelight.server.operations import Security, TokenFile

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from harness import serving
from load_client import COMMAND, start_server

TOKENS = {name: f"token-of-the-client-{name}" for name in ("many", "one", "limited", "old", "wrong")}
MAX_REQUESTS = 2  # of the client "limited", at once
FILE = f"""
[many]
tokens = ["{TOKENS["many"]}"]
[one]
tokens = ["{TOKENS["one"]}"]
[limited]
tokens = ["{TOKENS["limited"]}"]
max_requests = {MAX_REQUESTS}
[old]
tokens = ["{TOKENS["old"]}"]
expires = 2020-01-01T00:00:00Z
"""

LONG = "My grandmother is still vigorous at 82 years old. " * 3


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with a full queue")
    parser.add_argument("--waiting", type=int, default=1000, help="requests that wait before")
    parser.add_argument("--calls", type=int, default=500, help="refused calls of each kind")
    parser.add_argument("--flood", type=int, default=64, help="open requests of a flood")
    parser.add_argument("--requests", type=int, default=200, help="requests beside a flood, in a round")
    args = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.toml"
        path.write_text(FILE, encoding="utf-8")
        with serving(load(), security=Security(tokens=TokenFile(str(path)))) as address:
            console.print(_measure_waits(address, args.rounds, args.waiting))
            console.print(_measure_refusals(address, args.calls))
        command = [COMMAND, "serve", str(bundled_model()), "--tokens", str(path)]
        with start_server(command, {}) as (address, _):
            console.print(_measure_floods(address, args.rounds, args.requests, args.flood))
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


def _measure_floods(address: str, num_rounds: int, num_requests: int, num_open: int) -> Table:
    """Measures requests one after another: alone, and beside the floods of clients with and without a limit."""
    limited = f"{num_open} open requests, limit {MAX_REQUESTS}"
    kinds = {"nothing": None, limited: "limited", f"{num_open} open requests": "many"}
    ratios: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    percentiles: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    with Client(address, token=TOKENS["one"]) as client:
        _time_request(client)
        for _ in range(num_rounds):
            alone = (1.0, 1.0)
            for kind, name in kinds.items():
                with contextlib.nullcontext() if name is None else _flood(address, TOKENS[name], num_open):
                    seconds = statistics.quantiles([_time_request(client) for _ in range(num_requests)], n=100)
                found = seconds[49], seconds[98]
                alone = found if name is None else alone
                percentiles[kind].append(found)
                ratios[kind].append((found[0] / alone[0], found[1] / alone[1]))
    table = Table("flood of another client", "p50, ms", "p99, ms", "p50, times alone", "p99, times alone")
    for kind, values in percentiles.items():
        times = [statistics.median(column) * 1e3 for column in zip(*values, strict=True)]
        shares = [statistics.median(column) for column in zip(*ratios[kind], strict=True)]
        table.add_row(kind, *(f"{time:.1f}" for time in times), *(f"{share:.2f}" for share in shares))
    return table


@contextlib.contextmanager
def _flood(address: str, token: str, num_open: int) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_send_flood, args=(address, token, num_open))
    process.start()
    time.sleep(3)  # the flood has begun
    try:
        yield
    finally:
        process.kill()
        process.join()


def _send_flood(address: str, token: str, num_open: int) -> None:
    async def send_one_after_another(client: AsyncClient) -> None:
        while True:
            with contextlib.suppress(ResourceExhaustedError):
                await client.attribute(LONG).result()
            await asyncio.sleep(0.005)

    async def send() -> None:
        async with AsyncClient(address, token=token) as client:
            await asyncio.gather(*(send_one_after_another(client) for _ in range(num_open)))

    asyncio.run(send())


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
