"""A server with the clients of real life: ten thousand calls that mostly end early, and readers that stall.

Run by `make bench`, or by itself: `python tests/bench/bench_soak.py [--requests 10000] [--stalled 256] [--rounds 3]`.
First: which slots, requests, calls, tasks, threads, descriptors and memory are still in use after so many calls, which
clients cancel, reset, leave unread, or leave by their death; half of them without Python's garbage collector. Then: how
long healthy requests take, with and without readers that have stopped reading. The stream of a stalled reader is longer
than what the server holds for a reader. Both take turns, so that a noisy machine treats both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import grpc.aio
import torch
from load_client import serve
from rich.console import Console
from rich.table import Table
from sidelight.server.models.loader import bundled_model, load
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from soak import Outcome, soak

HEALTHY = 16
REQUESTS = 640  # healthy requests in a round
# Options of a stalled reader: a connection of its own with a small window, so that the client soon receives no more.
WINDOW = [("grpc.http2.lookahead_bytes", 16384), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
STREAMS_A_CHANNEL = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, metavar="N")
    parser.add_argument("--stalled", type=int, default=256, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    console = Console(width=120, highlight=False)
    is_sound = True
    if options.requests:
        loaded = load(bundled_model())
        for collects in (True, False):
            began = time.perf_counter()
            outcome = asyncio.run(soak(loaded, options.requests // 2, collects=collects))
            console.print("with Python's garbage collector" if collects else "without the garbage collector")
            is_sound &= _show(console, outcome, time.perf_counter() - began)
    if options.stalled:
        is_sound &= _stall(console, options.stalled, options.rounds)
    return 0 if is_sound else 1


def _show(console: Console, outcome: Outcome, seconds: float) -> bool:
    ends = ", ".join(f"{count:,} {end}" for end, count in outcome.ends.most_common())
    console.print(f"{sum(outcome.ends.values()):,} calls in {seconds:.0f} s: {ends}")
    table = Table("", "before", "after")
    for name in ("slots", "requests", "calls", "tasks", "threads", "descriptors"):
        table.add_row(f"{name} in use", *(str(getattr(usage, name)) for usage in (outcome.before, outcome.after)))
    table.add_row("memory, MB", *(f"{usage.memory / 1e6:.1f}" for usage in (outcome.before, outcome.after)))
    console.print(table)
    after = outcome.after
    is_empty = not (after.slots or after.requests or after.calls)
    has_grown = after.tasks > outcome.before.tasks or after.descriptors > outcome.before.descriptors
    return is_empty and not has_grown and not any(end.startswith(("INTERNAL", "UNKNOWN")) for end in outcome.ends)


def _stall(console: Console, count: int, rounds: int) -> bool:
    """Whether stalled readers make the 99th percentile of healthy requests at most 1.5 times as long."""
    with tempfile.TemporaryDirectory(), serve(bundled_model(), "bundled", []) as address:
        times = asyncio.run(_rounds(address, count, rounds))
    table = Table("16 healthy streams", "p50, ms", "p99, ms", title=f"{rounds} rounds of {REQUESTS} requests")
    ratios = {}
    for share in (50, 99):
        quantile = {name: [_quantile(seconds, share) for seconds in runs] for name, runs in times.items()}
        ratios[share] = statistics.median(b / a for a, b in zip(quantile["alone"], quantile["beside"], strict=True))
        times[f"{share}"] = [[statistics.median(runs) for runs in quantile.values()]]
    for place, name in enumerate(("alone", f"beside {count} stalled readers")):
        table.add_row(name, *(f"{times[share][0][place] * 1e3:.1f}" for share in ("50", "99")))
    table.add_row("ratio", *(f"{ratios[share]:.2f}" for share in (50, 99)))
    console.print(table)
    return ratios[99] <= 1.5


def _quantile(times: list[float], share: int) -> float:
    return statistics.quantiles(times, n=100)[share - 1]


async def _rounds(address: str, count: int, rounds: int) -> dict[str, list[list[float]]]:
    """The seconds of each healthy request in each round, alone and beside stalled readers."""
    times: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    await _healthy(address, HEALTHY)
    for _ in range(rounds):
        times["alone"].append(await _healthy(address, REQUESTS))
        async with _stalled(address, count):
            times["beside"].append(await _healthy(address, REQUESTS))
    return times


async def _healthy(address: str, requests: int) -> list[float]:
    request = pb.AttributeRequest()
    request.source.text = "My grandmother is still vigorous at 82 years old."
    request.capture.kinds.append(attention.ATTENTION_KIND_CROSS)
    seconds: list[float] = []
    numbers = iter(range(requests))
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = services.AttributionServiceStub(channel)
        await channel.channel_ready()

        async def work() -> None:
            for _ in numbers:
                began = time.perf_counter()
                async for _ in stub.Attribute(request):
                    pass
                seconds.append(time.perf_counter() - began)

        await asyncio.gather(*(work() for _ in range(HEALTHY)))
    return seconds


@contextlib.asynccontextmanager
async def _stalled(address: str, count: int) -> AsyncIterator[None]:
    """Begins `count` streams and stops reading them. Enters when the server can do no more for these streams."""
    request = pb.AttributeRequest()
    request.source.text = "My grandmother is still vigorous at 82 years old. " * 4
    request.decoding.max_new_tokens = 250
    request.decoding.ignore_eos = True
    request.capture.kinds.extend([attention.ATTENTION_KIND_CROSS, attention.ATTENTION_KIND_DECODER_SELF])
    async with contextlib.AsyncExitStack() as stack:
        calls: list[Any] = []
        for begin in range(0, count, STREAMS_A_CHANNEL):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=WINDOW))
            stub: Any = services.AttributionServiceStub(channel)
            calls += [stub.Attribute(request) for _ in range(min(STREAMS_A_CHANNEL, count - begin))]

        async def begin_reading(call: Any) -> None:
            while not (await call.read()).HasField("steps"):
                pass

        await asyncio.gather(*(begin_reading(call) for call in calls))
        await asyncio.sleep(20)  # the streams continue until what the server holds for them is full
        assert not any(call.done() for call in calls), "a stalled stream ended: it was too short"
        yield
        for call in calls:
            call.cancel()


if __name__ == "__main__":
    sys.exit(main())
