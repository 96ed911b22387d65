"""Measures the time and the extra memory of one program on one prompt, in processes that are started for the purpose.

The memory of a program is the peak of the resident set while the request runs, less the resident set just before. So
the cache is counted, and the model is not. A process that takes too much memory or time is ended.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from long_prompt_programs import PROGRAMS

COMMAND = str(Path(sys.executable).with_name("sidelight"))
MAX_SECONDS = 300.0  # of one measurement
MAX_BYTES, MIN_FREE_BYTES = 18e9, 2e9  # of the measured process; of the machine


@dataclass(frozen=True)
class Cost:
    """What a program took: bytes in the measured process and in the client, and seconds."""

    memory: int
    seconds: float
    first: float | None = None  # seconds until the first token
    client: int | None = None


class NoCostError(Exception):
    """A program could not be measured. The message stands in the table."""


def measure_cost(name: str, folder: Path, tokens: int) -> Cost:
    """Measures a program once.

    Args:
        name: A key of `PROGRAMS`.
        folder: Has the model, the texts and the logs; the program's attention is saved there.
        tokens: The length of the prompt.

    Raises:
        NoCostError: The program failed, or took too much.
    """
    log = folder / "log"
    if PROGRAMS[name].capture is None:
        with _worker(name, str(folder / "model"), folder, log) as worker:
            return _measure(worker, worker, folder, name, tokens, log)
    with _server(folder, log) as (server, address), _worker(name, address, folder, folder / "client.log") as worker:
        return _measure(server, worker, folder, name, tokens, log)


def _measure(
    measured: subprocess.Popen[str], worker: subprocess.Popen[str], folder: Path, name: str, tokens: int, log: Path
) -> Cost:
    """Orders a worker to run, and reads the memory of the measured process. Raises NoCostError."""
    _receive(worker, measured, log)
    before = {process.pid: _memory(process, "VmRSS") for process in (measured, worker)}
    for pid in before:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    _send(worker, {"prompt": str(folder / f"prompt-{tokens}"), "target": str(folder / "target")})
    answer = _receive(worker, measured, log)
    extra = {process.pid: _memory(process, "VmHWM") - before[process.pid] for process in (measured, worker)}
    _send(worker, {"save": str(folder / f"{name}-{tokens}.npy")})
    _receive(worker, measured, log)
    client = None if worker is measured else extra[worker.pid]
    return Cost(extra[measured.pid], answer["seconds"], answer["first"], client)


def _receive(worker: subprocess.Popen[str], measured: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """Waits for a worker's next line. Ends the measured process if it takes too much. Raises NoCostError."""
    assert worker.stdout is not None
    deadline = time.monotonic() + MAX_SECONDS
    # Memory that other processes use now stays theirs.
    limit = min(MAX_BYTES, _memory(measured, "VmRSS") + _available_memory() - MIN_FREE_BYTES)
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        while not selector.select(0.02):
            if _memory(measured, "VmRSS") > limit:
                measured.kill()
                raise NoCostError(f"ended: more than {limit / 1e9:.0f} GB")
            if time.monotonic() > deadline:
                raise NoCostError(f"ended: more than {MAX_SECONDS:.0f} s")
        line = worker.stdout.readline()
    if not line:
        raise NoCostError(f"died with {worker.wait()}: {_last_line(log)}")
    answer = json.loads(line)
    if "failed" in answer:
        raise NoCostError(f"failed: {answer['failed'][:200]}")
    return answer


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "the log is empty")


def _send(worker: subprocess.Popen[str], message: dict[str, str]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(message) + "\n")
    worker.stdin.flush()


def _memory(process: subprocess.Popen[str], field: str) -> int:
    """A field of a process's status, in bytes; 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _available_memory() -> int:
    """Bytes that the machine can still give to processes."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@contextmanager
def _server(folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the address of a server of the model."""
    arguments = ["serve", str(folder / "model"), "--address", "127.0.0.1:0", "--threads", str(num_cores())]
    with _process([COMMAND, *arguments], folder, log) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise NoCostError(f"the server did not start: {_last_line(log)}")
        yield server, line.split()[-1]


@contextmanager
def _worker(name: str, location: str, folder: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The process of a worker that runs a program; see `long_prompt_programs.work`."""
    script = Path(__file__).with_name("long_prompt_programs.py")
    command = [sys.executable, str(script), name, location, str(folder / "warm"), str(folder / "target")]
    with _process(command, folder, log) as worker:
        yield worker


@contextmanager
def _process(command: list[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end. Where memory runs out, the kernel ends this process first."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_cores()), "HF_HUB_OFFLINE": "1"}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=errors, text=True, cwd=folder, env=environment
        )
    try:
        Path(f"/proc/{process.pid}/oom_score_adj").write_text("900", encoding="ascii")
        yield process
    finally:
        process.kill()
        process.communicate()


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))
