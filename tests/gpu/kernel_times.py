"""How fast the kernels are: `sidelight kernels bench`, and its figures in a few lines.

With --dry each case runs once in Triton's interpreter at the audit's sizes: that the script runs is all that is seen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from report import Part
from sidelight.kernels import bench_command
from sidelight.kernels.variants import variants

# What an issue asks of a GPU.
LEAST_OF_COPY, LEAST_OF_TORCH = 0.8, 1.0


def once(thunk: Callable[[], object]) -> float:
    """Seconds of a single run."""
    began = time.perf_counter()
    thunk()
    return time.perf_counter() - began


def main() -> int:
    part = Part("kernel_times")
    file = part.out / "bench.json"
    if part.is_dry:
        import interpreter_fixes

        # One case of each kernel. The interpreter takes seconds for a large one.
        small = [next(of_kernel) for _, of_kernel in itertools.groupby(variants(), lambda variant: variant.kernel)]
        with interpreter_fixes.multiplying_bfloat16(), np.errstate(all="ignore"):
            status = bench_command.report(small, part.device, once, file)
    else:
        status = bench_command.run(argparse.Namespace(json=file))
    tell(part, json.loads(file.read_text(encoding="utf-8"))["variants"])
    return status


def tell(part: Part, timings: list[dict[str, Any]]) -> None:
    """Adds a line for each case. A < marks what is slower than it should be."""
    part.head("kernel", "case", "µs", "GB/s", "of copy", "× torch", "× SDPA", "× SDPA + rows")
    for timing in timings:
        seconds = timing["seconds"]
        times = [f"{timing[name] / seconds:.2f}" if timing[name] else "–" for name in ("eager", "sdpa", "two_passes")]
        is_bound_by_memory = timing["kernel"] in ("layout", "decode")
        of_copy = f"{timing['of_copy']:.0%}"
        if not part.is_dry:  # the interpreter is slower than anything
            of_copy += " <" if is_bound_by_memory and timing["of_copy"] < LEAST_OF_COPY else ""
            times[0] += " <" if timing["eager"] and timing["eager"] / seconds < LEAST_OF_TORCH else ""
        bandwidth = f"{timing['bytes_per_second'] / 1e9:,.0f}"
        part.row(timing["kernel"], timing["case"], f"{seconds * 1e6:,.1f}", bandwidth, of_copy, *times)


if __name__ == "__main__":
    sys.exit(main())
