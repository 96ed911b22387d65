"""The memory of a server that 32 streams keep busy: it stays flat.

Calls of Attribute, AttributeMany, Follow and Align are sent, many of which end early. After some minutes to warm up,
the resident memory of the server's process is noted every few seconds. Printed are the first and the last quarter of
the time, and the slope of a line through all samples, as a part of the mean. Run by `make soak`, or by itself:
`python tests/faults/soak_memory.py [--minutes 20] [--warm-up 5]`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import grpc.aio
from load_client import COMMAND, start_server
from rich.console import Console
from rich.table import Table
from sidelight.server.models.loader import bundled_model
from soak import resident, send_calls

STREAMS = 32
INTERVAL = 5.0  # seconds from one sample to the next
BATCH = 256  # calls between two looks at the clock
MAX_GROWTH = 0.02


def main() -> int:
    """Prints the table. Returns 1 where memory grows by more than 2%."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20, metavar="N")
    parser.add_argument("--warm-up", type=float, default=5, metavar="N", help="minutes before the first sample")
    options = parser.parse_args()
    command = [COMMAND, "serve", str(bundled_model()), "--name", "bundled"]
    with start_server(command, {"TOKENIZERS_PARALLELISM": "false"}) as (address, process):
        ends, samples = asyncio.run(_run(address, process, options.warm_up * 60, options.minutes * 60))
    return 0 if _show(ends, samples) else 1


async def _run(
    address: str, process: int, warm_up: float, seconds: float
) -> tuple[Counter[str], list[tuple[float, int]]]:
    """Sends calls all the time. Returns how they ended, and samples: seconds since the warm-up, and bytes."""
    ends: Counter[str] = Counter()
    samples: list[tuple[float, int]] = []
    chance = random.Random(0)
    begin = time.monotonic() + warm_up

    async def sample() -> None:
        while True:
            now = time.monotonic() - begin
            if now >= 0:
                samples.append((now, resident(process)))
            await asyncio.sleep(INTERVAL)

    async with grpc.aio.insecure_channel(address) as channel:
        sampling = asyncio.create_task(sample())
        while time.monotonic() < begin + seconds:
            ends += await send_calls(channel, address, chance, BATCH, STREAMS)
        sampling.cancel()
    return ends, samples


def _show(ends: Counter[str], samples: list[tuple[float, int]]) -> bool:
    """Prints what was measured. Returns whether memory stayed flat."""
    console = Console(width=100, highlight=False)
    console.print(f"{ends.total():,} calls: " + ", ".join(f"{count:,} {end}" for end, count in ends.most_common()))
    times, sizes = zip(*samples, strict=True)
    slope, _ = statistics.linear_regression(times, sizes)
    growth = slope * (times[-1] - times[0]) / statistics.mean(sizes)
    quarter = len(sizes) // 4
    table = Table("memory of the server", "MB")
    for name, part in (("first quarter", sizes[:quarter]), ("last quarter", sizes[-quarter:])):
        table.add_row(name, f"{statistics.mean(part) / 1e6:.1f}")
    table.add_row("least and most", f"{min(sizes) / 1e6:.1f} to {max(sizes) / 1e6:.1f}")
    console.print(table)
    console.print(f"slope over {(times[-1] - times[0]) / 60:.1f} minutes: {growth:+.2%}")
    return growth <= MAX_GROWTH


if __name__ == "__main__":
    sys.exit(main())
