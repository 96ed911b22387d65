"""What the parts of `run.py` share: where their figures go, on which device they run, how they time.

A part writes one JSON file: its figures, the lines of its table, and what is wrong. It writes the file again after each
figure, so that a part which is ended by its time limit leaves what it has found.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


class Part:
    """One part of the run, in a process of its own: `python part.py OUT SCRATCH [--dry]`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out, self.scratch = Path(sys.argv[1]), Path(sys.argv[2])
        self.is_dry = "--dry" in sys.argv[3:]
        self.device = "cpu" if self.is_dry else "cuda"
        self.figures: dict[str, Any] = {}
        self._lines: list[str] = []
        self._wrong: list[str] = []

    def head(self, *columns: str) -> None:
        """Begins a table of Markdown."""
        self._lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]

    def row(self, *cells: object) -> None:
        """Adds a line to the table."""
        self._lines.append("| " + " | ".join(map(str, cells)) + " |")
        self.save()

    def replace_rows(self, rows: Sequence[Sequence[object]]) -> None:
        """Makes these the only lines below the heading."""
        del self._lines[2:]
        for cells in rows:
            self.row(*cells)

    def note(self, text: str) -> None:
        """Adds a line that is no figure."""
        self._lines.append(text)
        self.save()

    def add(self, name: str, figure: Any) -> None:
        """Keeps a figure, or something made of figures."""
        self.figures[name] = figure
        self.save()

    def fail(self, text: str) -> None:
        """Says that something is wrong: the whole run then fails."""
        print(f"WRONG: {text}", flush=True)
        self._wrong.append(text)
        self.save()

    def save(self) -> None:
        """Writes the file."""
        content = {"figures": self.figures, "lines": self._lines, "wrong": self._wrong}
        file = self.out / f"{self.name}.json"
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(file)  # whoever reads meanwhile finds a whole file


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str, *, times: int) -> float:
    """The median of some runs, each to its end on the device."""
    taken: list[float] = []
    for _ in range(times):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)
