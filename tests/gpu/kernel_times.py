"""How fast the kernels are: the cases of `sidelight kernels bench`, one after the other.

With --dry the first case of each kernel runs once, in Triton's interpreter at the audit's size: the run shows only that
the script works.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import numpy as np
from report import PartReport
from sidelight.kernels.tools import bench
from sidelight.kernels.tools.bench import Timing
from sidelight.kernels.tools.cases import all_cases

MIN_COPY_SHARE = 0.8  # of a copy's bandwidth, for kernels that only move numbers: layout and decode
MIN_TORCH_RATIO = 1.0  # of the time that torch's eager operations take


def time_once(thunk: Callable[[], object]) -> float:
    """Seconds of a single run."""
    began = time.perf_counter()
    thunk()
    return time.perf_counter() - began


def main() -> int:
    report = PartReport("kernel_times")
    report.begin_table("kernel", "case", "µs", "GB/s", "of copy", "× torch", "× SDPA", "× SDPA + rows")
    if report.is_dry:
        import interpreter_fixes

        # One case of each kernel. The interpreter takes seconds for a large one.
        of_kernels = itertools.groupby(all_cases(), lambda case: case.kernel)
        with interpreter_fixes.fixed_interpreter(), np.errstate(all="ignore"):
            measure(report, [next(of_kernel) for _, of_kernel in of_kernels], time_once)
    else:
        measure(report, list(all_cases(large=True)), bench.median_time)
    return 0


def measure(report: PartReport, cases: list[bench.KernelCase], timer: bench.Timer) -> None:
    """Times each case and reports it at once. A case that fails leaves the others their turn."""
    machine = bench.machine(report.device)
    timings: list[Timing] = []
    for case in cases:
        try:
            timings.append(bench.measure(case, report.device, timer))
        except Exception as error:
            report.fail_with(f"{case.kernel}, {case.name}", error)
            continue
        bench.write(report.out / "bench.json", machine, timings)
        add_row(report, timings[-1])


def add_row(report: PartReport, timing: Timing) -> None:
    """Adds a row for a case. A < marks what is slower than it should be."""
    baselines = [timing.eager, timing.sdpa, timing.two_passes]
    ratios = ["–" if seconds is None else f"{seconds / timing.seconds:.2f}" for seconds in baselines]
    of_copy = f"{timing.of_copy:.0%}"
    if not report.is_dry:  # the interpreter is slower than anything
        of_copy += " <" if timing.kernel in ("layout", "decode") and timing.of_copy < MIN_COPY_SHARE else ""
        ratios[0] += " <" if timing.eager and timing.eager / timing.seconds < MIN_TORCH_RATIO else ""
    bandwidth = f"{timing.bytes_per_second / 1e9:,.0f}"
    report.add_row(timing.kernel, timing.case, f"{timing.seconds * 1e6:,.1f}", bandwidth, of_copy, *ratios)


if __name__ == "__main__":
    sys.exit(main())
