"""Start-up: the time from `sidelight serve` to SERVING, with cold and with warm caches, and the lines that it prints.

Run by `make bench`, or by itself: `python tests/bench/bench_startup.py [--rounds 7] [--commands PATH ...]`. Each
command is one checkout's `sidelight`; without --commands, the one beside this Python. The commands take turns, so that
a noisy machine treats all alike; figures are medians over rounds. SERVING is what the health check of gRPC answers.
Processor time is of the whole process until then, and differs less on a machine that others use.

Cold means that Numba and Triton find empty caches: that is the first start after an installation.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.table import Table

CACHES = {"NUMBA_CACHE_DIR": "numba", "TRITON_CACHE_DIR": "triton"}
LIMIT = 300.0  # seconds that a start may take


class Start(NamedTuple):
    """One start of a server."""

    seconds: float  # from the process's start to SERVING
    processor_seconds: float  # of the process and its threads until then
    lines: int  # on both outputs until then


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7, metavar="N")
    parser.add_argument("--cold-rounds", type=int, metavar="N", help="without it, as many as --rounds")
    beside = Path(sys.executable).with_name("sidelight")
    parser.add_argument("--commands", nargs="+", type=Path, default=[beside], metavar="PATH")
    options = parser.parse_args()
    rounds = {"cold": options.rounds if options.cold_rounds is None else options.cold_rounds, "warm": options.rounds}
    table = Table("command", "caches", "to SERVING, s", "processor, s", "lines", title="medians of starts")
    with tempfile.TemporaryDirectory() as folder:
        for caches, count in rounds.items():
            starts = measure_rounds(options.commands, caches == "cold", count, Path(folder))
            for command, measured in starts.items():
                if measured:
                    add_row(table, str(command), caches, measured)
    Console(width=120, highlight=False).print(table)
    return 0


def measure_rounds(commands: list[Path], is_cold: bool, rounds: int, folder: Path) -> dict[Path, list[Start]]:
    """Starts each command once a round. Cold starts get new caches; warm ones share those of a start before."""
    starts: dict[Path, list[Start]] = {command: [] for command in commands}
    warm = {command: folder / f"warm {number}" for number, command in enumerate(commands)}
    if not is_cold and rounds:
        for command in commands:
            measure_start(command, warm[command])
    for number in range(rounds):
        for command in commands[:: 1 if number % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(dir=folder) as empty:
                starts[command].append(measure_start(command, Path(empty) if is_cold else warm[command]))
    return starts


def measure_start(command: Path, caches: Path) -> Start:
    """Starts `sidelight serve` on the bundled model and a free port, waits until it serves, and ends it."""
    environment = os.environ | {name: str(caches / folder) for name, folder in CACHES.items()}
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [command, "serve", "--address", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tempfile.gettempdir(),
            env=environment,
        )
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise SystemExit(f"{command} did not serve:\n{log.read()}")
            with grpc.insecure_channel(line.split()[-1]) as channel:
                check = health_pb2_grpc.HealthStub(channel).Check
                answer = check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=LIMIT)
            seconds, processor_seconds = time.perf_counter() - began, processor_seconds_of(process.pid)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            log.seek(0)
            return Start(seconds, processor_seconds, 1 + sum(bool(text.strip()) for text in log.read().split("\n")))
        finally:
            watchdog.cancel()
            process.send_signal(signal.SIGTERM)
            process.wait()


def processor_seconds_of(process: int) -> float:
    """What a process has used of processors; 0 where the system has no /proc."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def add_row(table: Table, command: str, caches: str, starts: list[Start]) -> None:
    median = [statistics.median(figures) for figures in zip(*starts, strict=True)]
    table.add_row(
        command, f"{caches}, {len(starts)} starts", f"{median[0]:.2f}", f"{median[1]:.2f}", f"{median[2]:.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
