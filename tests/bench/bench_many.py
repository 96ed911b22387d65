"""Tokens per second with 32 texts under way: AttributeMany, single calls, and CTranslate2, on the bundled model.

Run by `make bench`. The contenders take turns, so that a noisy machine treats them alike; figures are medians. Beside
tokens per second stands the processor time of the server and of the client for each token, which other programs on the
machine disturb less. All texts are checked to have the same tokens. One more round has a stream beside it that asks for
much and reads nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import contenders
import grpc
import load_client
from raw_http2 import RawConnection
from rich.console import Console
from rich.table import Table
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc, text_pb2
from workloads import DATA, Workload, bundled_workload, measure_size

MANY = "/sidelight.v1.AttributionService/AttributeMany"


@dataclass
class Figures:
    """The runs of one contender: tokens per second, and microseconds of processor time for each token."""

    rates: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)


async def _run_many(address: str, requests: list[pb.AttributeRequest], concurrency: int) -> dict[str, list[int]]:
    """Sends the requests over one stream, the next as soon as one ends. Returns the tokens of each."""
    waiting = iter(requests)
    targets: dict[str, list[int]] = {request.request_id: [] for request in requests}
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = attribution_service_pb2_grpc.AttributionServiceStub(channel).AttributeMany()
        num_running = 0
        for _ in range(concurrency):
            num_running += await _send_next(call, waiting)
        while num_running:
            response = await call.read()
            for event in response.batch.responses if response.HasField("batch") else (response,):
                for step in event.response.steps.steps:
                    if len(step.cross.values) == 0:
                        raise RuntimeError(f"step {step.index} of {event.request_id} has no attention")
                    targets[event.request_id].append(step.token.id)
                if event.HasField("error"):
                    raise RuntimeError(event.error.message)
                if event.response.HasField("finished"):
                    num_running += await _send_next(call, waiting) - 1
        await call.done_writing()
    return targets


async def _send_next(call: Any, waiting: Iterator[pb.AttributeRequest]) -> int:
    """Sends the next request. Returns how many were sent."""
    request = next(waiting, None)
    if request is None:
        return 0
    await call.write(pb.AttributeManyRequest(attribute=request))
    return 1


@contextmanager
def _stalled_stream(address: str) -> Iterator[None]:
    """A stream of AttributeMany whose client sends long texts and takes nothing."""
    with RawConnection(address) as raw:
        request = load_client.request_of("A dog.", 250, load_client.EVERY_HEAD)
        request.decoding.CopyFrom(text_pb2.Decoding(ignore_eos=True, max_new_tokens=250))
        framed = b""
        for number in range(32):
            request.request_id = f"stalled-{number}"
            data = pb.AttributeManyRequest(attribute=request).SerializeToString()
            framed += b"\x00" + len(data).to_bytes(4, "big") + data
        first = int.from_bytes(framed[1:5], "big")
        raw.call(MANY, framed[5:], of=first)
        time.sleep(1)
        yield


def _measure(workload: Workload, rounds: int, concurrencies: list[int]) -> tuple[dict[str, Figures], int]:
    figures: dict[str, Figures] = {}
    requests = [load_client.request_of(source, None, load_client.EVERY_HEAD) for source in workload.sources]
    for number, request in enumerate(requests):
        request.request_id = str(number)
    num_tokens = 0
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        size = measure_size(workload.folder)
        started = contenders.start_contenders(["sidelight", "ct2"], workload, size, Path(scratch), [])
        programs, _ = stack.enter_context(started)
        address = programs["sidelight"].address
        server = load_client.find_server()

        def run(name: str, concurrency: int, *, many: bool) -> list[list[int]]:
            wall, cpu, served = time.perf_counter(), time.process_time(), load_client.server_seconds(server)
            if many:
                targets = list(asyncio.run(_run_many(address, requests, concurrency)).values())
                wall = time.perf_counter() - wall
            else:
                outcome = programs[name].run(concurrency)
                targets, wall = outcome.targets, outcome.seconds
            total = sum(map(len, targets))
            entry = figures.setdefault(f"{name}, {concurrency} under way" if many else name, Figures())
            entry.rates.append(total / wall)
            entry.server.append((load_client.server_seconds(server) - served) / total * 1e6)
            entry.client.append((time.process_time() - cpu) / total * 1e6)
            return targets

        for number in range(rounds + 1):
            if number == 1:
                figures.clear()  # the first round does what only a first round does
            single = run("sidelight", 32, many=False)
            num_tokens = sum(map(len, single))
            run("ct2", 32, many=False)
            for concurrency in concurrencies:
                many = run("AttributeMany", concurrency, many=True)
                if many != single:
                    raise RuntimeError("AttributeMany and Attribute write different tokens")
        with _stalled_stream(address):
            for _ in range(rounds):
                run("AttributeMany beside a stalled stream", 32, many=True)
    return figures, num_tokens


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrencies", default="32,48", help="how many texts are under way on the stream")
    args = parser.parse_args()
    workload = bundled_workload(args.sentences)
    if workload is None:
        print(f"skipped: {DATA} is not here")
        return 0
    contenders.prepare()
    figures, num_tokens = _measure(workload, args.rounds, [int(text) for text in args.concurrencies.split(",")])
    table = Table(title=f"{workload.title}, {num_tokens} tokens, medians of {args.rounds}")
    for column in ("", "tokens/s", "times single calls", "times CTranslate2", "server µs/token", "client µs/token"):
        table.add_column(column, justify="left" if not column else "right")
    labels = {"sidelight": "Attribute, 32 calls", "ct2": "CTranslate2 float32, batches of 32"}
    single, ct2 = (statistics.median(figures[name].rates) for name in ("sidelight", "ct2"))
    for name, entry in figures.items():
        rate = statistics.median(entry.rates)
        times = () if name == "ct2" else (statistics.median(entry.server), statistics.median(entry.client))
        cells = [f"{rate:.0f}", f"{rate / single:.2f}", f"{rate / ct2:.2f}", *(f"{time:.0f}" for time in times)]
        table.add_row(labels.get(name, name), *cells)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
