"""Times kernels on a GPU, and compares them with torch and with a copy of as many bytes.

The timer is a parameter, so that everything else runs without a GPU. A kernel that only moves numbers can be no faster
than a copy: its fraction of a copy's bandwidth says how much there is to gain. The least bytes of a case count as
moved, whatever a kernel really moves.
"""
# Triton comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from rich.table import Table
from triton.testing import do_bench

from .cases import KernelCase

Timer = Callable[[Callable[[], object]], float]
"""Runs a function often, and returns the seconds of one run."""


class Timing(NamedTuple):
    """The times of a case and of its baselines, in seconds."""

    kernel: str
    case: str
    least_bytes: int
    flops: int
    seconds: float
    copy: float  # a copy that reads half of the bytes, and writes half
    eager: float | None  # the same result by torch's operations, one after another
    sdpa: float | None  # attention without probabilities, by torch's fused kernel
    two_passes: float | None = None  # the same attention, then the rows from a second read of queries and keys

    @property
    def bytes_per_second(self) -> float:
        """The least bytes divided by the time; less than the GPU's traffic where a kernel moves more."""
        return self.least_bytes / self.seconds

    @property
    def of_copy(self) -> float:
        """The fraction of a copy's bandwidth."""
        return self.copy / self.seconds


def median_time(thunk: Callable[[], object]) -> float:
    """Returns the median over about 100 ms, with an L2 cache that holds none of the inputs.

    Runs a CUDA graph of the launches, where they can be captured: Python takes longer to launch two or three kernels
    than a small case takes to run, and longer than writing the 256 MB that clear the cache.
    """
    milliseconds: Any = do_bench(as_graph(thunk), return_mode="median")
    return milliseconds / 1000


def as_graph(thunk: Callable[[], object]) -> Callable[[], object]:
    """Returns the launches as a CUDA graph; the thunk itself where there is no GPU, or no graph."""
    if not torch.cuda.is_available():
        return thunk
    thunk()  # compiles, and makes one-time allocations
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            thunk()
    except RuntimeError:  # an operation that waits for the GPU
        torch.cuda.synchronize()
        return thunk
    return graph.replay


def measure(case: KernelCase, device: str, timer: Timer) -> Timing:
    """Times a case and its baselines, each on tensors of its own."""

    def seconds_of(make: Callable[[str], Callable[[], object]] | None) -> float | None:
        return timer(make(device)) if make else None

    return Timing(
        case.kernel,
        case.name,
        case.least_bytes,
        case.flops,
        timer(_make_launches(case, device)),
        timer(_make_copy(case.least_bytes, device)),
        seconds_of(case.eager),
        seconds_of(case.sdpa),
        seconds_of(case.two_passes),
    )


def _make_launches(case: KernelCase, device: str) -> Callable[[], object]:
    launches = case.launches(device)

    def run() -> None:
        for launch in launches:
            launch.run()

    return run


def _make_copy(total: int, device: str) -> Callable[[], object]:
    source = torch.zeros(total // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def machine(device: str) -> dict[str, str]:
    """Returns what times depend on, by name: the GPU, its driver and clocks, and versions."""
    facts = {"python": platform.python_version(), "torch": str(torch.__version__), "triton": triton.__version__}
    if torch.device(device).type != "cuda":
        return {"device": device, **facts}
    gpu: Any = torch.cuda.get_device_properties(device)
    facts = {"device": gpu.name, "multiprocessors": f"{gpu.multi_processor_count}", **facts}
    versions: Mapping[str, Any] = vars(torch.version)
    for name, version in (("CUDA", versions["cuda"]), ("ROCm", versions["hip"])):
        if version:
            facts[name] = str(version)
    return {**facts, **_nvidia_smi(f"GPU-{gpu.uuid}")}


def _nvidia_smi(gpu: str) -> dict[str, str]:
    """Returns the driver and the clocks; nothing where nvidia-smi is missing or fails."""
    fields = {
        "driver": "driver_version",
        "multiprocessor clock": "clocks.sm",
        "at most": "clocks.max.sm",
        "memory clock": "clocks.mem",
        "power limit": "power.limit",
    }
    program = shutil.which("nvidia-smi")
    if not program:
        return {}
    query = f"--query-gpu={','.join(fields.values())}"
    try:
        done = subprocess.run(
            [program, f"--id={gpu}", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (subprocess.SubprocessError, OSError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.split(",")), strict=False))


def table(timings: Sequence[Timing]) -> Table:
    """Returns a table with a line for each case."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    rows.add_column("kernel", no_wrap=True)
    rows.add_column("case", no_wrap=True)
    for name in ("MB", "µs", "GB/s", "of copy", "TFLOP/s", "copy µs", "eager µs", "SDPA µs", "SDPA + rows µs"):
        rows.add_column(name, justify="right", no_wrap=True)
    for timing in timings:
        rows.add_row(
            timing.kernel,
            timing.case,
            f"{timing.least_bytes / 1e6:,.1f}",
            f"{timing.seconds * 1e6:,.1f}",
            f"{timing.bytes_per_second / 1e9:,.0f}",
            f"{timing.of_copy:.0%}",
            f"{timing.flops / timing.seconds / 1e12:,.1f}" if timing.flops else "–",
            _compared(timing.copy, timing.seconds),
            _compared(timing.eager, timing.seconds),
            _compared(timing.sdpa, timing.seconds),
            _compared(timing.two_passes, timing.seconds),
        )
    return rows


def _compared(baseline: float | None, seconds: float) -> str:
    """A baseline's time, and its ratio to the kernel's time."""
    return "–" if baseline is None else f"{baseline * 1e6:,.1f} ({baseline / seconds:.2f}x)"


def write(file: Path, facts: Mapping[str, str], timings: Sequence[Timing]) -> None:
    """Writes the times as JSON. Raises OSError."""
    text = json.dumps(as_json(facts, timings), indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def as_json(facts: Mapping[str, str], timings: Sequence[Timing]) -> dict[str, Any]:
    """Returns the times for JSON, in seconds."""
    return {
        "machine": dict(facts),
        "variants": [
            {**timing._asdict(), "bytes_per_second": timing.bytes_per_second, "of_copy": timing.of_copy}
            for timing in timings
        ],
    }
