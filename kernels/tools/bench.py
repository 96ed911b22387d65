"""Times kernels on a GPU, against what torch would take for the same and against copying as many bytes.

Knows variants and how to time; prints nothing. How times are taken is a parameter, so that all else runs without a GPU.
A kernel that only moves numbers about can be no faster than a copy: the share of a copy's bandwidth says how much is
left to gain. What a variant calls its least bytes is counted as moved, whatever a kernel moves in fact.
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
"""Runs something often and says how many seconds one run takes."""


class Timing(NamedTuple):
    """How long a variant and what it is compared with take, in seconds."""

    kernel: str
    case: str
    least_bytes: int
    flops: int
    seconds: float
    copy: float  # a copy that reads half of the bytes, and writes half
    eager: float | None  # the same result by torch's operations, one after the other
    sdpa: float | None  # attention without its probabilities, by torch's fused kernel
    two_passes: float | None = None  # the same attention, and then the rows from a second read of queries and keys

    @property
    def bytes_per_second(self) -> float:
        """The least bytes by the time taken; less than the GPU's traffic where a kernel moves more."""
        return self.least_bytes / self.seconds

    @property
    def of_copy(self) -> float:
        """The share of a copy's bandwidth."""
        return self.copy / self.seconds


def median(thunk: Callable[[], object]) -> float:
    """The median over about 100 ms, with an L2 cache that holds none of the inputs.

    What runs is a CUDA graph of the launches, where they can be made one: Python takes longer to launch two or three
    kernels than a small case takes to run, and longer than the 256 MB take that are written to clear the cache.
    """
    milliseconds: Any = do_bench(as_graph(thunk), return_mode="median")
    return milliseconds / 1000


def as_graph(thunk: Callable[[], object]) -> Callable[[], object]:
    """The same launches in one call of a CUDA graph; the thunk itself where there is no GPU, or no graph of it."""
    if not torch.cuda.is_available():
        return thunk
    thunk()  # compiles, and allocates once what is allocated once
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            thunk()
    except RuntimeError:  # an operation that waits for the GPU
        torch.cuda.synchronize()
        return thunk
    return graph.replay


def measure(variant: KernelCase, device: str, timer: Timer) -> Timing:
    """Times a variant and its baselines, each on tensors of its own."""

    def seconds_of(make: Callable[[str], Callable[[], object]] | None) -> float | None:
        return timer(make(device)) if make else None

    return Timing(
        variant.kernel,
        variant.case,
        variant.least_bytes,
        variant.flops,
        timer(_launching(variant, device)),
        timer(_copying(variant.least_bytes, device)),
        seconds_of(variant.eager),
        seconds_of(variant.sdpa),
        seconds_of(variant.two_passes),
    )


def _launching(variant: KernelCase, device: str) -> Callable[[], object]:
    launches = variant.launches(device)

    def launch() -> None:
        for each in launches:
            each.run()

    return launch


def _copying(total: int, device: str) -> Callable[[], object]:
    read = torch.zeros(total // 2, dtype=torch.uint8, device=device)
    written = torch.empty_like(read)
    return lambda: written.copy_(read)


def machine(device: str) -> dict[str, str]:
    """What times depend on, by name, for people: the GPU, its driver and clocks, and versions."""
    found = {"python": platform.python_version(), "torch": str(torch.__version__), "triton": triton.__version__}
    if torch.device(device).type != "cuda":
        return {"device": device, **found}
    gpu: Any = torch.cuda.get_device_properties(device)
    found = {"device": gpu.name, "multiprocessors": f"{gpu.multi_processor_count}", **found}
    versions: Mapping[str, Any] = vars(torch.version)
    for name, version in (("CUDA", versions["cuda"]), ("ROCm", versions["hip"])):
        if version:
            found[name] = str(version)
    return {**found, **_nvidia_smi(f"GPU-{gpu.uuid}")}


def _nvidia_smi(gpu: str) -> dict[str, str]:
    """The driver and the clocks; nothing where there is no nvidia-smi, or it does not know."""
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
    """What people read: a line for each variant."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column("kernel", no_wrap=True)
    made.add_column("case", no_wrap=True)
    for name in ("MB", "µs", "GB/s", "of copy", "TFLOP/s", "copy µs", "eager µs", "SDPA µs", "SDPA + rows µs"):
        made.add_column(name, justify="right", no_wrap=True)
    for timing in timings:
        made.add_row(
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
    return made


def _compared(baseline: float | None, seconds: float) -> str:
    """A baseline's time, and how many times the kernel's it is."""
    return "–" if baseline is None else f"{baseline * 1e6:,.1f} ({baseline / seconds:.2f}x)"


def write(file: Path, found: Mapping[str, str], timings: Sequence[Timing]) -> None:
    """Writes what programs read, in JSON. Raises OSError."""
    text = json.dumps(as_json(found, timings), indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def as_json(found: Mapping[str, str], timings: Sequence[Timing]) -> dict[str, Any]:
    """What programs read. Times are in seconds."""
    return {
        "machine": dict(found),
        "variants": [
            {**timing._asdict(), "bytes_per_second": timing.bytes_per_second, "of_copy": timing.of_copy}
            for timing in timings
        ],
    }
