"""Operations of CPU programs as rows of numbers: how tensors are written into their fields, and how a table runs.

An operation is a row of int64 numbers: addresses, strides in bytes, sizes and the bits of float32 numbers (see
`jit.opcodes`). A table is several operations, one row each. Nothing here keeps the tensors alive.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .jit import opcodes as op

Fields: TypeAlias = NDArray[np.int64]
"""The fields of one operation, or of several, one row each."""


class OperationList:
    """Operations in order, and the tensors that they use, which the list keeps alive. The base of `Program`."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._operations: list[Fields] = []
        self._tensors: list[Tensor] = []  # keeps them alive: fields hold addresses only
        self._table: Fields | None = None
        self._quantized: tuple[Tensor, Tensor, Tensor] | None = None  # the last quantized tensor, its bytes and scales

    @property
    def table(self) -> Fields:
        """The operations, one row of fields each."""
        if self._table is None or len(self._table) != len(self._operations):
            self._table = np.stack(self._operations)
        return self._table

    @property
    def num_operations(self) -> int:
        """How many operations there are so far."""
        return len(self._operations)

    def _add_operation(self, kind: int, x: Tensor, out: Tensor, size: int) -> Fields:
        fields = np.zeros(op.NUM_FIELDS, np.int64)
        fields[op.KIND], fields[op.SIZE] = kind, size
        fields[op.X], fields[op.X_STRIDE] = self._address(x), row_stride(x)
        fields[op.OUT], fields[op.OUT_STRIDE] = self._address(out), row_stride(out)
        self._forget_quantized(out)
        self._operations.append(fields)
        return fields

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the quantization of x unless x has just been quantized. Returns the bytes and the scales of rows."""
        if self._quantized is None or self._quantized[0] is not x:
            width = x.shape[1]
            quantized = torch.zeros(self._max_rows, -(-width // 4) * 4, dtype=torch.uint8)
            scales = torch.zeros(self._max_rows)
            self._add_operation(op.QUANTIZE, x, quantized, width)[op.SCALES] = self._address(scales)
            self._quantized = x, quantized, scales
        return self._quantized[1:]

    def _set_keys_and_values(self, fields: Fields, keys: Tensor, values: Tensor) -> None:
        set_keys_and_values(fields, keys, values)
        for tensor, field in ((keys, op.KEYS), (values, op.VALUES)):
            self._forget_quantized(tensor)
            fields[field] = self._address(tensor)

    def _set_probabilities(self, fields: Fields, probabilities: Tensor) -> None:
        """Writes where the probabilities of an attention go, `[rows, heads, positions]`."""
        fields[op.PROBABILITIES] = self._address(probabilities)
        strides = [4 * stride for stride in probabilities.stride()]
        fields[op.PROBABILITIES_STRIDE], fields[op.PROBABILITIES_HEAD] = strides[:2]

    def _forget_quantized(self, written: Tensor) -> None:
        """Drops the quantized copy of a tensor that an operation overwrites."""
        if self._quantized is not None and share_memory(self._quantized[0], written):
            self._quantized = None

    def _address(self, tensor: Tensor | None) -> int:
        """The address of a tensor, which the program keeps alive; 0 for None."""
        if tensor is None:
            return 0
        self._tensors.append(tensor)
        return tensor.data_ptr()


def run_operations(
    table: Fields,
    num_rows: int,
    first_slot: int = 0,
    num_self_positions: int = 0,
    num_cross_positions: int = 0,
    num_sequences: int = 0,
) -> None:
    """Runs a table of operations. The arguments are those of `Program.run`, sequences by their number.

    Nothing is checked.
    """
    from .jit.thread_pool import thread_pool

    run = np.array([num_rows, first_slot, num_self_positions, num_cross_positions, num_sequences], np.int64)
    thread_pool.run(table, run, torch.get_num_threads())


def set_keys_and_values(fields: Fields, keys: Tensor, values: Tensor) -> None:
    """Writes the addresses, strides and sizes of keys and values `[slots, heads, positions, width]`.

    Raises ValueError where the numbers of a head are not contiguous.
    """
    for tensor, first in ((keys, op.KEYS), (values, op.VALUES)):
        if tensor.stride(3) != 1:
            raise ValueError("keys, values: the numbers of a head must be contiguous")
        fields[first : first + 4] = tensor.data_ptr(), *(4 * stride for stride in tensor.stride()[:3])
    fields[op.HEADS], fields[op.VALUE_WIDTH] = keys.shape[1], values.shape[3]


def store_rows(probabilities: Tensor, values: Tensor, column: int, rows: Tensor | None, *, is_cross: bool) -> Fields:
    """An operation for the epilogue of a program: writes probabilities in the layout of a message.

    Args:
        probabilities: `[rows, heads, positions]`, from `Program.attend`. Must exist until the run has ended.
        values: float32 `[stored, 1, positions, columns]`: where they go. Must exist until the run has ended.
        column: The column of the first head; each further head has the next column.
        rows: int64 `[stored]`: which rows are stored; None: all. Must exist until the run has ended.
        is_cross: Whether the probabilities are those of cross-attention.

    Raises:
        ValueError: `values` is not float32, or has fewer columns.
    """
    heads = probabilities.shape[1]
    fields = _store(op.STORE_ROWS, probabilities, values, column, heads, rows, is_cross=is_cross)
    fields[op.STORED_HEADS] = heads
    return fields


class HeadSum(NamedTuple):
    """Which heads `sum_heads` adds, each times a factor. `share_factor` is that of the shares of left-out positions."""

    numbers: NDArray[np.int64]
    factors: NDArray[np.float32]
    share_factor: float


def sum_heads(
    probabilities: Tensor,
    values: Tensor,
    column: int,
    rows: Tensor | None,
    heads: HeadSum,
    *,
    is_cross: bool,
    is_added: bool,
    left_out: Tensor | None = None,
    shares: Tensor | None = None,
) -> Fields:
    """An operation for the epilogue of a program: writes the weighted sum of some heads into one column.

    All tensors, and the arrays of `heads`, must exist until the run has ended.

    Args:
        probabilities: As in `store_rows`.
        values: As in `store_rows`.
        column: The column.
        rows: As in `store_rows`.
        heads: The heads and their factors.
        is_cross: As in `store_rows`.
        is_added: Whether the sum is added to what `values` and `shares` hold.
        left_out: Which positions each stored row leaves out, bool `[1 or stored, positions]`. A head is divided by the
            sum of its other positions.
        shares: float32 `[stored, 1, columns]`: where the sum of the left-out positions of all heads goes.

    Raises:
        ValueError: `values` is not float32, or has fewer columns.
    """
    fields = _store(op.SUM_HEADS, probabilities, values, column, 1, rows, is_cross=is_cross)
    fields[op.STORED_HEADS], fields[op.IS_ADDED] = len(heads.numbers), is_added
    fields[op.HEAD_NUMBERS], fields[op.HEAD_FACTORS] = heads.numbers.ctypes.data, heads.factors.ctypes.data
    if left_out is not None and shares is not None:
        fields[op.LEFT_OUT] = left_out.data_ptr()
        fields[op.LEFT_OUT_STRIDE] = left_out.stride(0) if left_out.shape[0] > 1 else 0
        fields[op.SHARES], fields[op.SHARES_STRIDE] = shares.data_ptr() + 4 * column, 4 * shares.stride(0)
        fields[op.SHARE_FACTOR] = float_bits(heads.share_factor)
    return fields


def _store(
    kind: int,
    probabilities: Tensor,
    values: Tensor,
    column: int,
    num_columns: int,
    rows: Tensor | None,
    *,
    is_cross: bool,
) -> Fields:
    """What the operations that write rows have in common."""
    if values.dtype != torch.float32 or column < 0 or column + num_columns > values.shape[3]:
        raise ValueError("values: must be float32, with a column for each head")
    fields = np.zeros(op.NUM_FIELDS, np.int64)
    fields[op.KIND], fields[op.IS_CROSS] = kind, is_cross
    fields[op.X], fields[op.X_STRIDE] = probabilities.data_ptr(), 4 * probabilities.stride(0)
    fields[op.X_HEAD] = 4 * probabilities.stride(1)
    fields[op.OUT], fields[op.OUT_STRIDE] = values.data_ptr() + 4 * column, 4 * values.stride(0)
    fields[op.OUT_STEP] = 4 * values.stride(2)
    if rows is not None:
        fields[op.HAS_ROW_INDEX], fields[op.ROW_INDEX], fields[op.SIZE] = 1, rows.data_ptr(), len(rows)
    return fields


def row_stride(tensor: Tensor) -> int:
    """Bytes from one row to the next. Raises ValueError where the numbers of a row are not contiguous."""
    if tensor.dim() > 1 and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError("rows: the numbers of a row must be contiguous")
    return tensor.stride(0) * tensor.element_size()


def float_bits(number: float) -> int:
    """The bits of a float32, as fields hold it."""
    return int.from_bytes(struct.pack("<f", number), "little", signed=True)


def share_memory(tensor: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors have the same storage."""
    return tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
