"""What the parts of `run.py` share: where their figures go, on which device they run, how they time.

A part writes one JSON file: its figures, the lines of its table, and what is wrong. It writes the file again after each
figure: when its time limit ends a part, the figures so far are in the file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


class PartReport:
    """The report of one part, which is a process of its own: `python part.py OUT SCRATCH [--dry]`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out, self.scratch = Path(sys.argv[1]), Path(sys.argv[2])
        self.is_dry = "--dry" in sys.argv[3:]
        self.device = "cpu" if self.is_dry else "cuda"
        self.figures: dict[str, Any] = {}
        self._table: list[str] = []  # the heading and the rows
        self._notes: list[str] = []  # lines below the table
        self._wrong: list[str] = []

    def begin_table(self, *columns: str) -> None:
        """Begins the table, in Markdown."""
        self._table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]

    def add_row(self, *cells: object) -> None:
        """Adds a row to the table."""
        self._table.append("| " + " | ".join(map(str, cells)) + " |")
        self.save()

    def set_rows(self, rows: Sequence[Sequence[object]]) -> None:
        """Makes these rows the only rows of the table."""
        self._table[2:] = ["| " + " | ".join(map(str, cells)) + " |" for cells in rows]
        self.save()

    def add_note(self, text: str) -> None:
        """Adds a line below the table."""
        self._notes.append(text)
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

    def fail_with(self, what: str, error: Exception) -> None:
        """Says that something has raised an error, whose traceback goes to the log."""
        traceback.print_exception(error)
        self.fail(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}"[:250])

    def save(self) -> None:
        """Writes the file."""
        lines = [*self._table, *self._notes]
        content = {"figures": self.figures, "lines": lines, "wrong": self._wrong}
        file = self.out / f"{self.name}.json"
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(file)  # a reader finds a whole file at any time


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
