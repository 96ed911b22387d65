"""The greatest score of each row that a last layer gives, found by a program (see `jit.argmax_ops`).

Knows layers in panels, and bounds on their estimates; knows nothing of tokens or requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .jit import opcodes as op
from .program import PackedWeight, Program, bits_of, run_table

# Panels that are one piece of work.
_TOGETHER = 8


class ErrorBounds(NamedTuple):
    """Between the scores of a last layer and estimates of them, from a copy of its weights (see `screened_head`).

    A score is off by norms * off + errors * length + slack at most, where `length` is its row's, and `off` how far the
    row is from its bytes, and `rounding` times its length.
    """

    weights: Tensor  # float32 [size, inner], contiguous
    bias: Tensor | None  # float32 [size]
    norms: Tensor  # float32 [size]
    errors: Tensor  # float32 [size]
    slack: float
    rounding: float


class MaskedColumns(NamedTuple):
    """Scores that are not looked at, by panels."""

    begin: Tensor  # int64 [panels + 1]
    rows: Tensor  # int64 [n]
    columns: Tensor  # int64 [n]: within their panels


def out_of_the_question(rows: Tensor, places: Tensor, size: int) -> MaskedColumns:
    """Of `size` scores of each row, those at some places, int64 `[n]` each."""
    from .jit.isa import COLUMNS

    places, order = places.sort()
    panels = -(-size // COLUMNS)
    begin = torch.searchsorted(places, torch.arange(panels + 1) * COLUMNS)
    return MaskedColumns(begin, rows[order].contiguous(), places % COLUMNS)


class LinearArgmax:
    """Finds the greatest score that a last layer, in panels, gives each row. For one thread at a time."""

    def __init__(self, panels: PackedWeight, bounds: ErrorBounds | None = None) -> None:
        """With bounds, panels are of bytes, and what they give are estimates of scores."""
        if bounds is not None and panels.channels is None:
            raise ValueError("panels: must be of bytes, where there are bounds")
        self._kept = panels, bounds
        self.size = panels.size
        # What stands before it quantizes rows.
        before = Program(1)
        before.product(before.room(panels.inner), panels, before.room(panels.size))
        quantizing, product = before.table[:-1], before.table[-1]
        searching = np.stack([product, product])
        searching[:, op.KIND] = (op.MAXIMA, op.GREATEST)
        searching[:, op.TOGETHER] = _TOGETHER
        if bounds is not None:
            searching[:, op.INNER], searching[:, op.WEIGHTS] = panels.inner, bounds.weights.data_ptr()
            searching[:, op.WEIGHTS_BIAS] = 0 if bounds.bias is None else bounds.bias.data_ptr()
            searching[:, op.NORMS], searching[:, op.ERRORS] = bounds.norms.data_ptr(), bounds.errors.data_ptr()
            searching[:, op.MOST_NORM], searching[:, op.MOST_ERROR] = (
                bits_of(float(most.max())) for most in (bounds.norms, bounds.errors)
            )
            searching[:, op.SLACK], searching[:, op.ROUNDING] = bits_of(bounds.slack), bits_of(bounds.rounding)
        self._table: NDArray[np.int64] = np.concatenate([quantizing, searching])
        self._first = len(quantizing)
        self._rows = 0  # that there is room for
        self._room: dict[int, Tensor] = {}  # what a search writes, by the field that says where
        self._make_room(1)

    def __call__(self, hidden: Tensor, excluded: MaskedColumns | None = None) -> tuple[Tensor, Tensor]:
        """What is `found`, from rows `[n, inner]`."""
        hidden = hidden.contiguous()
        run_table(self.prepare(hidden, excluded), len(hidden))
        return self.found(len(hidden))

    def found(self, count: int) -> tuple[Tensor, Tensor]:
        """The place of the greatest score of each of so many rows, int64 `[n]`, once a search has run.

        And the greatest number that was met there, float32 `[n]`: the score, or an estimate; NaN where any is, and then
        the place is that of one; minus infinity where all are out of the question. Both are there until the next run.
        """
        return self._room[op.TOKENS][:count], self._room[op.MOST][:count]

    def prepare(self, hidden: Tensor, excluded: MaskedColumns | None = None) -> NDArray[np.int64]:
        """Operations that search rows `[n, inner]`, by themselves or behind a program (see `Program.run`).

        The rows, and what is excluded, must be there until the run has ended, and no other search of this one's may
        run before.
        """
        if not hidden.is_contiguous():
            raise ValueError("hidden: rows must stand one after another")
        count = len(hidden)
        if count > self._rows:
            self._make_room(count)
        search = self._table[self._first :]
        search[:, op.HIDDEN] = hidden.data_ptr()
        if self._first:
            self._table[0, op.X] = hidden.data_ptr()
        else:
            search[:, op.X] = hidden.data_ptr()
        search[:, op.OUT_BEGIN] = 0
        if excluded is not None and len(excluded.rows):
            search[:, op.OUT_BEGIN], search[:, op.OUT_ROWS] = excluded.begin.data_ptr(), excluded.rows.data_ptr()
            search[:, op.OUT_COLUMNS] = excluded.columns.data_ptr()
        return np.array(self._table, np.int64)

    def _make_room(self, rows: int) -> None:
        """Makes what a search writes large enough for so many rows. New memory takes longer than what is done in it."""
        panels, _, columns = self._kept[0].weights.shape[:3]
        made = {
            op.TOKENS: torch.zeros(rows, dtype=torch.int64),
            op.MOST: torch.zeros(rows),
            op.NUMBERS: torch.zeros(rows, panels * columns),
            op.MAXIMA_OF_PANELS: torch.zeros(rows, panels),
        }
        if self._first:
            made[op.SCALES] = torch.zeros(rows)
            made[op.X] = torch.zeros(rows, int(self._table[0, op.OUT_STRIDE]), dtype=torch.uint8)
        # There is room for all of it: nothing is changed before.
        for field, tensor in made.items():
            self._table[self._first :, field] = tensor.data_ptr()
        if self._first:
            self._table[0, op.OUT], self._table[0, op.SCALES] = (made[field].data_ptr() for field in (op.X, op.SCALES))
        self._rows, self._room = rows, made
