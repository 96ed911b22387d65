"""The greatest score of each row of a linear layer, without writing all scores (see `jit.argmax_ops`).

With error bounds the layer is an int8 copy of the weights: its results are estimates of scores. Scores are then
computed from the float32 weights where an estimate may belong to the greatest score, and nowhere else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .jit import opcodes as op
from .operations import Fields, float_bits, run_operations
from .packed_weights import PackedWeight
from .program import Program

# Panels of one task.
_PANELS_PER_TASK = 8


class ErrorBounds(NamedTuple):
    """Bounds between scores and their estimates, which come from an int8 copy of the weights.

    A score differs from its estimate by at most norms * error + errors * length + slack. `length` is the length of the
    row, and `error` is the distance of the row from its quantized copy, plus `rounding` times `length`.
    """

    weights: Tensor  # float32 [out, in], contiguous
    bias: Tensor | None  # float32 [out]
    norms: Tensor  # float32 [out]: the length of each row of the int8 copy
    errors: Tensor  # float32 [out]: the distance of each row of weights from its int8 copy
    slack: float
    rounding: float


class MaskedColumns(NamedTuple):
    """Scores that the search skips, ordered by panel."""

    begin: Tensor  # int64 [panels + 1]: where the scores of each panel begin
    rows: Tensor  # int64 [n]
    columns: Tensor  # int64 [n]: within the panel


def mask_columns(rows: Tensor, columns: Tensor, out_features: int) -> MaskedColumns:
    """Orders scores by panel: `rows` and `columns`, int64 `[n]` each, name scores of a layer of `out_features`."""
    from .jit.isa import PANEL_WIDTH

    # By NumPy: each call of torch takes some microseconds, and masks change as often as rows come and go.
    order = np.argsort(columns.numpy(), kind="stable")
    sorted_columns = columns.numpy()[order]
    num_panels = -(-out_features // PANEL_WIDTH)
    begin = np.searchsorted(sorted_columns, np.arange(num_panels + 1) * PANEL_WIDTH)
    rows, columns = torch.as_tensor(rows.numpy()[order]), torch.as_tensor(sorted_columns % PANEL_WIDTH)
    return MaskedColumns(torch.as_tensor(begin), rows, columns)


class LinearArgmax:
    """Finds the greatest score of each row of a linear layer. One thread uses it at a time."""

    def __init__(self, weight: PackedWeight, bounds: ErrorBounds | None = None) -> None:
        """With `bounds`, `weight` is the int8 copy. Raises ValueError where there are bounds and it is not int8."""
        if bounds is not None and weight.channel_scales is None:
            raise ValueError("weight: must be int8 where there are bounds")
        self._weight, self._bounds = weight, bounds
        self.out_features = weight.out_features
        # For int8 a program begins with the quantization of rows, and ends with the product.
        program = Program(1)
        program.matmul(program.buffer(weight.in_features), weight, program.buffer(weight.out_features))
        quantization, matmul = program.table[:-1], program.table[-1]
        search = np.stack([matmul, matmul])
        search[:, op.KIND] = (op.FIND_MAXIMA, op.FIND_ARGMAX)
        search[:, op.PANELS_PER_TASK] = _PANELS_PER_TASK
        if bounds is not None:
            search[:, op.IN_FEATURES], search[:, op.WEIGHTS] = weight.in_features, bounds.weights.data_ptr()
            search[:, op.WEIGHTS_BIAS] = 0 if bounds.bias is None else bounds.bias.data_ptr()
            search[:, op.NORMS], search[:, op.ERRORS] = bounds.norms.data_ptr(), bounds.errors.data_ptr()
            search[:, op.MAX_NORM], search[:, op.MAX_ERROR] = (
                float_bits(float(values.max())) for values in (bounds.norms, bounds.errors)
            )
            search[:, op.SLACK], search[:, op.ROUNDING] = float_bits(bounds.slack), float_bits(bounds.rounding)
        self._table: Fields = np.concatenate([quantization, search])
        self._num_quantizations = len(quantization)  # 0 or 1
        self._max_rows = 0  # of the buffers
        self._buffers: dict[int, Tensor] = {}  # what a search writes, by the field that holds the address
        self._allocate(1)

    def __call__(self, hidden: Tensor, masked: MaskedColumns | None = None) -> tuple[Tensor, Tensor]:
        """Searches rows `[n, in]`, and returns what `results` returns."""
        hidden = hidden.contiguous()
        run_operations(self.prepare(hidden, masked), len(hidden))
        return self.results(len(hidden))

    def results(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Returns what the last run has found for its first rows. The next run overwrites it.

        Returns:
            The column of the greatest score of each row, int64 `[n]`; and the greatest number that the search met in
            the row, float32 `[n]`: the score itself, or with bounds an estimate. NaN where any score of the row is NaN;
            the column is then that of a NaN. Minus infinity where all scores are masked.
        """
        return self._buffers[op.ROW_ARGMAX][:num_rows], self._buffers[op.ROW_MAX][:num_rows]

    def prepare(self, hidden: Tensor, masked: MaskedColumns | None = None) -> Fields:
        """Returns operations that search rows `[n, in]`, to run alone or as the epilogue of a program.

        `hidden` and `masked` must exist until the run has ended, and no other search may run before. Raises ValueError
        where `hidden` is not contiguous.
        """
        if not hidden.is_contiguous():
            raise ValueError("hidden: must be contiguous")
        num_rows = len(hidden)
        if num_rows > self._max_rows:
            self._allocate(num_rows)
        search = self._table[self._num_quantizations :]
        search[:, op.HIDDEN] = hidden.data_ptr()
        if self._num_quantizations:
            self._table[0, op.X] = hidden.data_ptr()
        else:
            search[:, op.X] = hidden.data_ptr()
        search[:, op.MASK_BEGIN] = 0
        if masked is not None and len(masked.rows):
            search[:, op.MASK_BEGIN], search[:, op.MASK_ROWS] = masked.begin.data_ptr(), masked.rows.data_ptr()
            search[:, op.MASK_COLUMNS] = masked.columns.data_ptr()
        return np.array(self._table, np.int64)

    def _allocate(self, max_rows: int) -> None:
        """Allocates buffers for so many rows. They are kept: allocation takes longer than the search itself."""
        num_panels, _, width = self._weight.panels.shape[:3]
        buffers = {
            op.ROW_ARGMAX: torch.zeros(max_rows, dtype=torch.int64),
            op.ROW_MAX: torch.zeros(max_rows),
            op.SCORES: torch.zeros(max_rows, num_panels * width),
            op.PANEL_MAXIMA: torch.zeros(max_rows, num_panels),
        }
        if self._num_quantizations:
            buffers[op.SCALES] = torch.zeros(max_rows)
            buffers[op.X] = torch.zeros(max_rows, int(self._table[0, op.OUT_STRIDE]), dtype=torch.uint8)
        # Only after all allocations have succeeded does anything change.
        for field, tensor in buffers.items():
            self._table[self._num_quantizations :, field] = tensor.data_ptr()
        if self._num_quantizations:
            self._table[0, op.OUT], self._table[0, op.SCALES] = (
                buffers[field].data_ptr() for field in (op.X, op.SCALES)
            )
        self._max_rows, self._buffers = max_rows, buffers
