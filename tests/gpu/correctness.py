"""Compares the Triton kernels with float64, and a server that runs them with the models' own matrices.

Each check is a call of a public function of `sidelight.kernels`, or a request to a server, on the device. On a GPU the
checks run in several processes, since the compiler takes most of the time of a check.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import torch
from kernel_checks import CheckResult, checks, run_check, run_large
from report import PartReport
from sanitizer import Sanitizer
from served_checks import FAMILIES, SERVED_TOLERANCE, Served, check_served
from sidelight.kernels.tools import cases


class Checks:
    """All checks of one run. On a GPU other processes check the kernels while this process serves models."""

    def __init__(self, report: PartReport) -> None:
        self.report = report
        self.results: list[CheckResult] = []
        self.served: dict[str, Served] = {}
        self.sanitized: list[object] = ["compute-sanitizer", "–", "–", "not run", "", ""]
        self._lock = threading.Lock()
        report.begin_table("what", "checks", "wrong", "greatest difference", "allowed", "the same bits twice")

    def run(self) -> None:
        """Runs all checks. Reports each figure at once."""
        device = self.report.device
        planned = list(checks(is_dry=self.report.is_dry))
        if self.report.is_dry:
            for check in planned:
                self._add(run_check(check, device))
            self._serve_all()
            return
        sanitizer = Sanitizer(self.report.scratch / "sanitizer.txt")
        serving = threading.Thread(target=self._serve_all)
        serving.start()
        workers = max(1, min(12, (os.cpu_count() or 2) - 3))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            # The bench's sizes come first: they matter most, and afterwards the bench finds its kernels compiled.
            futures = [pool.submit(run_large, place, device) for place in range(len(list(cases.all_cases(large=True))))]
            futures += [pool.submit(run_check, check, device) for check in planned]
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, Exception):  # a process has died, and the pool is broken
                    self.report.fail_with("a process that checks kernels", error)
                    break
                self._add(future.result())
        serving.join()
        self.sanitized = sanitizer.wait(self.report)
        self._set_rows()

    def _serve_all(self) -> None:
        for name in FAMILIES:
            try:
                self.served[name] = check_served(self.report, name)
            except Exception as error:
                self.report.fail_with(f"{name}, served", error)
            self._set_rows()

    def _add(self, result: CheckResult) -> None:
        self.results.append(result)
        if not result.is_right:
            bits = "" if result.is_deterministic else ", other bits the second time"
            problem = result.problem or f"{result.error:.1e} apart, {result.allowed:.1e} allowed{bits}"
            self.report.fail(f"{result.name}: {problem}")
        self._set_rows()

    def _set_rows(self) -> None:
        with self._lock:
            by_kernel: dict[str, list[CheckResult]] = defaultdict(list)
            for result in self.results:
                by_kernel[result.kernel].append(result)
            rows: list[list[object]] = []
            for kernel, results in sorted(by_kernel.items()):
                worst = max(results, key=lambda one: one.error / one.allowed if one.allowed else one.error)
                wrong = sum(not result.is_right for result in results)
                same = f"{sum(result.is_deterministic for result in results)} of {len(results)}"
                rows.append([kernel, len(results), wrong, f"{worst.error:.1e}", f"{worst.allowed:.1e}", same])
            if served := [*self.served.values()]:
                wrong = sum(not model.is_right for model in served)
                same = f"{sum(model.is_deterministic for model in served)} of {len(served)}"
                error = f"{max(model.error for model in served):.1e}"
                name = f"served {', '.join(self.served)}"
                rows.append([name, len(served), wrong, error, f"{SERVED_TOLERANCE:.1e}", same])
            self.report.figures["kernels"] = [result._asdict() for result in self.results]
            self.report.figures["served"] = {name: model._asdict() for name, model in self.served.items()}
            self.report.set_rows([*rows, self.sanitized])


def main() -> int:
    report = PartReport("correctness")
    torch.set_num_threads(1 if report.is_dry else 4)
    # For the processes that check kernels: each waits for a compiler most of the time.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    Checks(report).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
