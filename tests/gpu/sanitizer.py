"""Runs a case of each kernel under compute-sanitizer, in a process of its own. As a script, runs the cases."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from kernel_checks import Check, run_check
from report import PartReport
from sidelight.kernels.tools import cases


class Sanitizer:
    """A process that runs a case of each kernel under compute-sanitizer. Without the tool there is no process."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if tool is None:
            return
        command = [tool, "--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode", "9", sys.executable]
        # torch's cache of memory is off: an access behind a tensor would otherwise stay inside a block of the cache.
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        with output.open("wb") as file:
            self._process = subprocess.Popen([*command, __file__], stdout=file, stderr=file, env=environment)

    def wait(self, report: PartReport) -> list[object]:
        """Waits for the tool. Returns the row of the table, and reports errors."""
        if self._process is None:
            return ["compute-sanitizer", "–", "–", "it is not here", "", ""]
        try:
            status = self._process.wait(45)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return ["compute-sanitizer", 3, "–", "not finished in time", "", ""]
        lines = self._output.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-40:]))
        summary = next((line for line in reversed(lines) if "ERROR SUMMARY" in line), "").strip("= \n")
        if status in (9, WRONG_CASES):
            report.fail(f"compute-sanitizer: {summary or 'a case is wrong'}")
        elif status != 0:
            summary = f"could not run: {lines[-1][:80] if lines else status}"
        return ["compute-sanitizer", 3, int(status in (9, WRONG_CASES)), summary, "", ""]


WRONG_CASES = 8  # the exit status if a case differs from float64


def run_cases() -> int:
    """Runs one case of each kernel. Returns the exit status."""
    results = [
        run_check(Check("backend", cases.LAYOUTS[2], 1, 16, 48), "cuda"),
        run_check(Check("rows", cases.ROWS[1], 1, 33, 33), "cuda"),
        run_check(Check("decode", cases.DECODES[3], 2, 1, 65), "cuda"),
    ]
    return 0 if all(result.is_right for result in results) else WRONG_CASES


if __name__ == "__main__":
    sys.exit(run_cases())
