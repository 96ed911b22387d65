"""Programs for a CPU: products, norms and attention in order, run without Python in between.

A model's step is some hundred small operations. As calls of torch's, each costs some microseconds of Python, starts
threads and waits for them, and is in the way of whatever else Python does; here a whole step is one call that holds no
lock of Python's. Products read weights in panels that fit registers, at the speed of the memory for few rows. Float32
throughout, or with weights and inputs in int8, summed exactly.

Needs Numba and an x86 processor with AVX2; `is_supported` says whether both are there. Knows tensors; knows nothing of
models, caches or requests.
"""

from __future__ import annotations

import logging
import platform
import struct
import sys
from functools import cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .jit import opcodes as op
from .jit.opcodes import MOST_POSITIONS, MOST_WIDTH

log = logging.getLogger(__name__)

Activation = Literal["none", "relu", "silu", "gelu"]


@cache
def is_supported(*, of_bytes: bool = False) -> bool:
    """Whether programs run here; `of_bytes`: those with weights in int8, too.

    Compiles what runs them, or loads what has been compiled before: some seconds the first time, then less.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or find_spec("numba") is None:
        return False
    try:
        from .jit import isa as cpu_machine

        if cpu_machine.IS_SUPPORTED:
            from .jit import thread_pool as cpu_team  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except Exception:  # whatever an installation that does not fit together raises
        log.warning("programs for CPUs cannot be compiled, and are done without", exc_info=True)
        return False
    return cpu_machine.IS_SUPPORTED and (cpu_machine.HAS_BYTES or not of_bytes)


class PackedWeight(NamedTuple):
    """A weight `[out, in]` as products read it, and what its sums go through."""

    inner: int  # how long the rows are that it is multiplied by
    size: int  # how long those are that come of it
    weights: Tensor  # [panels, places, columns]; of bytes, four for each place
    bias: Tensor  # float32, of all columns, zeros where there is none
    channels: Tensor | None = None  # of bytes: the scale of each channel, float32, likewise
    corrections: Tensor | None = None  # of bytes: what is too much in the sums, int32, likewise


def pack_weight(weight: Tensor, channels: Tensor | None = None, bias: Tensor | None = None) -> PackedWeight:
    """Lays out a weight `[out, in]` for products: float32, or int8 with the scale `[out]` of each channel.

    Raises ValueError for other types, RuntimeError where such programs do not run.
    """
    of_bytes = channels is not None
    if weight.dtype != (torch.int8 if of_bytes else torch.float32):
        raise ValueError(f"weight: must be float32, or int8 with channels, not {weight.dtype}")
    if not is_supported(of_bytes=of_bytes):
        raise RuntimeError("this machine does not run CPU programs")
    from .jit.isa import COLUMNS

    size, inner = weight.shape
    depth = 4 if of_bytes else 1
    places, panels = -(-inner // depth), -(-size // COLUMNS)
    padded = weight.new_zeros(panels * COLUMNS, places * depth)
    padded[:size, :inner] = weight
    laid_out = padded.view(panels, COLUMNS, places, depth).permute(0, 2, 1, 3).contiguous()

    def padded_to_panels(numbers: Tensor | None, dtype: torch.dtype) -> Tensor:
        made = torch.zeros(panels * COLUMNS, dtype=dtype)
        if numbers is not None:
            made[:size] = numbers
        return made

    biases = padded_to_panels(bias, torch.float32)
    if channels is None:
        return PackedWeight(inner, size, laid_out, biases)
    # Inputs are 128 above what they stand for.
    corrections = padded_to_panels(weight.sum(1, dtype=torch.int32).mul_(128), torch.int32)
    return PackedWeight(inner, size, laid_out, biases, padded_to_panels(channels, torch.float32), corrections)


class Attention(NamedTuple):
    """One attention of a program: a query for each row, over keys that stand in slots.

    Keys `[slots, heads, positions, width]` and values `[slots, heads, positions, value width]`. Each slot sees as many
    as `lengths` says, int64 `[slots]` or `[slots, 1]`, at least one; with `new`, the key and value
    `[rows, heads * width]` of each row, which are kept behind those, one more.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    scale: float
    new: tuple[Tensor, Tensor] | None = None


class Program:
    """Operations in their order, on tensors that are there as long as the program is: the first rows of each."""

    def __init__(self, rows: int) -> None:
        """For at most so many rows. Raises RuntimeError where programs do not run."""
        if not is_supported():
            raise RuntimeError("this machine does not run CPU programs")
        self._rows = rows
        self._operations: list[NDArray[np.int64]] = []
        self._kept: list[Tensor] = []
        self._table: NDArray[np.int64] | None = None
        self._bytes: tuple[Tensor, Tensor, Tensor] | None = None  # the last rows quantized, and what they became

    def room(self, width: int) -> Tensor:
        """A tensor for what comes in between, float32 `[rows, width]`."""
        return torch.zeros(self._rows, width)

    def product(
        self,
        x: Tensor,
        panels: PackedWeight,
        out: Tensor,
        *,
        activation: Activation = "none",
        added: Tensor | None = None,
    ) -> None:
        """`out` becomes activation(x @ weight.T + bias) + added: float32 `[rows, in]` to `[rows, out]`.

        In int8 each row of x is quantized with a scale of its own. Raises ValueError where `out` is of the same memory
        as `x` or `added`: rows may be read again when others are written.
        """
        from .jit.primitives import ACTIVATIONS

        if any(other is not None and _is_shared(out, other) for other in (x, added)):
            raise ValueError("out: must not be of the same memory as x, or what is added")
        scales: Tensor | None = None
        if panels.channels is not None:
            x, scales = self._quantized(x)
        fields = self._operation(op.PRODUCT, x, out, panels.size)
        fields[op.WEIGHT] = self._address(panels.weights)
        fields[op.PLACES] = panels.weights.shape[1]
        fields[op.BIAS] = self._address(panels.bias)
        fields[op.ACTIVATION] = ACTIVATIONS.index(activation)
        fields[op.ADDED] = self._address(added)
        fields[op.ADDED_STRIDE] = 0 if added is None else stride_of(added)
        fields[op.SCALES] = self._address(scales)
        fields[op.CHANNELS] = self._address(panels.channels)
        fields[op.CORRECTIONS] = self._address(panels.corrections)
        # Pieces small enough to share, and large enough to be worth taking.
        fields[op.TOGETHER] = min(8, -(-len(panels.weights) // 16))

    def _quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows in bytes, and their scales: once, where several products read the same."""
        if self._bytes is None or self._bytes[0] is not x:
            width = x.shape[1]
            made = torch.zeros(self._rows, -(-width // 4) * 4, dtype=torch.uint8)
            scales = torch.zeros(self._rows)
            self._operation(op.QUANTIZE, x, made, width)[op.SCALES] = self._address(scales)
            self._bytes = x, made, scales
        return self._bytes[1:]

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, out: Tensor) -> None:
        """LayerNorm of each row, `[rows, width]`; `out` may be x."""
        fields = self._operation(op.NORMALIZE, x, out, x.shape[1])
        fields[op.WEIGHT], fields[op.BIAS] = self._address(weight), self._address(bias)
        fields[op.EPSILON] = bits_of(epsilon)

    def attend(self, query: Tensor, attention: Attention, shares: Tensor, out: Tensor) -> None:
        """One query for each row, `[rows, heads * width]`: its mix of values, `[rows, heads * value width]`.

        `shares`, `[rows, heads, positions]`, is where probabilities go, zeros behind what a row sees.
        """
        keys, values, lengths, scale, new = attention
        fields = self._operation(op.ATTEND, query, out, keys.shape[3])
        self._keys_and_values(fields, keys, values)
        fields[op.SHARES] = self._address(shares)
        fields[op.SHARES_STRIDE], fields[op.SHARES_HEAD] = (4 * stride for stride in shares.stride()[:2])
        fields[op.LENGTHS] = self._address(lengths)
        fields[op.SCALE] = bits_of(scale)
        if new is not None:
            fields[op.IS_OWN] = 1
            fields[op.NEW_KEY], fields[op.NEW_VALUE] = (self._address(each) for each in new)
            fields[op.NEW_STRIDE], fields[op.NEW_VALUE_STRIDE] = (stride_of(each) for each in new)

    def attend_within(self, projected: Tensor, heads: int, lengths: Tensor, scale: float, out: Tensor) -> None:
        """Each row of a sequence over all of that: queries, keys and values side by side, `[rows, 3 * width]`.

        A sequence is as many rows as `run` is told, of which as many count as `lengths` says, int64 `[sequences]`; what
        becomes of the others is left open. A sequence has MOST_POSITIONS rows at most, a head
        MOST_WIDTH numbers.
        """
        width = projected.shape[1] // 3
        if width // heads > MOST_WIDTH:
            raise ValueError(f"heads: must have {MOST_WIDTH} numbers at most, not {width // heads}")
        query, key, value = (projected[:, begin : begin + width] for begin in (0, width, 2 * width))
        fields = self._operation(op.ATTEND_WITHIN, query, out, query.shape[1] // heads)
        # Of one slot: how long sequences are, is not known yet.
        keys, values = (each.view(len(each), heads, -1).transpose(0, 1)[None] for each in (key, value))
        self._keys_and_values(fields, keys, values)
        fields[op.LENGTHS] = self._address(lengths)
        fields[op.SCALE] = bits_of(scale)

    def spread(self, projected: Tensor, keys: Tensor, values: Tensor, slots: Tensor, lengths: Tensor) -> None:
        """Rows of keys and values side by side, `[rows, heads * (width + value width)]`, to where slots have them.

        As many of each sequence's rows as `lengths` says, int64 `[sequences]`; `slots`, likewise, says where they go.
        """
        fields = self._operation(op.SPREAD, projected, projected, keys.shape[3])
        self._keys_and_values(fields, keys, values)
        fields[op.SLOTS], fields[op.LENGTHS] = self._address(slots), self._address(lengths)

    def embed(
        self,
        ids: Tensor,
        table: Tensor,
        scale: float,
        positions: Tensor,
        lengths: Tensor,
        out: Tensor,
        *,
        other: tuple[int, Tensor] | None = None,
    ) -> None:
        """A row of the table, times `scale`, and a row of positions for each token, ids int64 `[rows, 1]`.

        A row's position is its slot's length. A token that the table does not have gives NaN. `other` is an id and the
        positions that tokens of that id have.
        """
        fields = self._operation(op.EMBED, ids, out, table.shape[1])
        fields[op.TABLE], fields[op.TABLE_SCALE] = self._address(table), bits_of(scale)
        fields[op.TABLE_ROWS] = len(table)
        fields[op.POSITIONS] = fields[op.OTHER_POSITIONS] = self._address(positions)
        fields[op.OTHER_ID] = -1
        if other is not None:
            fields[op.OTHER_ID], fields[op.OTHER_POSITIONS] = other[0], self._address(other[1])
        fields[op.LENGTHS] = self._address(lengths)

    def _keys_and_values(self, fields: NDArray[np.int64], keys: Tensor, values: Tensor) -> None:
        for tensor, first in ((keys, op.KEYS), (values, op.VALUES)):
            self._forget(tensor)
            if tensor.stride(3) != 1:
                raise ValueError("keys, values: numbers of a head must stand one after another")
            fields[first : first + 4] = self._address(tensor), *(4 * stride for stride in tensor.stride()[:3])
        fields[op.HEADS], fields[op.VALUE_WIDTH] = keys.shape[1], values.shape[3]

    def run(
        self,
        count: int,
        *,
        x: Tensor | None = None,
        first: int = 0,
        shown_own: int = 0,
        shown_source: int = 0,
        sequence: int = 1,
        then: NDArray[np.int64] | None = None,
    ) -> None:
        """Runs it for `count` rows, whose slots are those from `first` on, with as many threads as torch uses.

        The first operation reads `x` instead of what it was made for, where there is one, of the same kind.
        So many positions of attentions with keys of their own, and of the others, are written to their shares.
        `sequence` is how many rows each sequence has, where these are of sequences; `then`, what follows (see `keep`
        and `LinearArgmax.prepare`).
        """
        if not 0 < count <= self._rows:
            raise ValueError(f"count: must be 1 to {self._rows}, not {count}")
        if not 0 < sequence <= MOST_POSITIONS or count % sequence:
            raise ValueError(f"sequence: must be 1 to {MOST_POSITIONS}, and count a multiple of it, not {sequence}")
        table = self.table
        if then is not None:
            table = np.concatenate([table, then])
        elif x is not None:
            table = np.array(table, np.int64)  # for this run alone
        if x is not None:
            table[0, op.X], table[0, op.X_STRIDE] = x.data_ptr(), stride_of(x)
        run_table(table, count, first, shown_own, shown_source, sequence)

    @property
    def table(self) -> NDArray[np.int64]:
        """Its operations, a row of fields each."""
        if self._table is None or len(self._table) != len(self._operations):
            self._table = np.stack(self._operations)
        return self._table

    def _operation(self, kind: int, x: Tensor, out: Tensor, size: int) -> NDArray[np.int64]:
        fields = np.zeros(op.FIELDS, np.int64)
        fields[op.KIND], fields[op.SIZE] = kind, size
        fields[op.X], fields[op.X_STRIDE] = self._address(x), stride_of(x)
        fields[op.OUT], fields[op.OUT_STRIDE] = self._address(out), stride_of(out)
        self._forget(out)
        self._operations.append(fields)
        return fields

    def _forget(self, written: Tensor) -> None:
        """Leaves off what has been made of numbers that will be others."""
        if self._bytes is not None and _is_shared(self._bytes[0], written):
            self._bytes = None

    def _address(self, tensor: Tensor | None) -> int:
        """Where a tensor is, which stays there."""
        if tensor is None:
            return 0
        self._kept.append(tensor)
        return tensor.data_ptr()


def keep(shares: Tensor, values: Tensor, column: int, rows: Tensor | None, *, is_source: bool) -> NDArray[np.int64]:
    """An operation that may follow a program: shares `[rows, heads, positions]` as a message has them.

    They go to `values`, float32 `[kept, 1, positions, columns]`, a head in each column from `column` on. `rows`, int64
    `[kept]`, says which are kept, None all; `is_source`, whether positions are those of sources. The tensors must be
    there until the run has ended.
    """
    if values.dtype != torch.float32 or column < 0 or column + shares.shape[1] > values.shape[3]:
        raise ValueError("values: must be float32, with a column for each head")
    fields = np.zeros(op.FIELDS, np.int64)
    fields[op.KIND], fields[op.KEPT_HEADS], fields[op.IS_SOURCE] = op.KEEP, shares.shape[1], is_source
    fields[op.X], fields[op.X_STRIDE], fields[op.X_HEAD] = shares.data_ptr(), 4 * shares.stride(0), 4 * shares.stride(1)
    fields[op.OUT], fields[op.OUT_STRIDE] = values.data_ptr() + 4 * column, 4 * values.stride(0)
    fields[op.OUT_STEP] = 4 * values.stride(2)
    if rows is not None:
        fields[op.ARE_SOME], fields[op.KEPT_ROWS], fields[op.SIZE] = 1, rows.data_ptr(), len(rows)
    return fields


class PackedMatmul:
    """x @ weight.T + bias by itself: float32 `[..., in]` to `[..., out]`, with as many threads as torch uses."""

    def __init__(self, panels: PackedWeight) -> None:
        self.panels = panels  # keeps the weight
        program = Program(1)
        program.product(program.room(panels.inner), panels, program.room(panels.size))
        self._table: NDArray[np.int64] = program.table  # with addresses to be filled in at each call

    def __call__(self, x: Tensor) -> Tensor:
        """x: float32 `[..., in]`, at least one row."""
        rows = x.reshape(-1, self.panels.inner).contiguous()
        count = len(rows)
        out = torch.empty(count, self.panels.size)
        table = np.array(self._table, np.int64)
        table[0, op.X] = rows.data_ptr()
        if len(table) > 1:  # quantized first
            width = int(table[0, op.OUT_STRIDE])
            quantized, scales = torch.empty(count, width, dtype=torch.uint8), torch.empty(count)
            table[0, op.OUT] = table[1, op.X] = quantized.data_ptr()
            table[:, op.SCALES] = scales.data_ptr()
        table[-1, op.OUT] = out.data_ptr()
        run_table(table, count)
        return out.view(*x.shape[:-1], self.panels.size)


def run_table(
    table: NDArray[np.int64],
    count: int,
    first: int = 0,
    shown_own: int = 0,
    shown_source: int = 0,
    sequence: int = 1,
) -> None:
    """Runs operations, a row of fields each: as `Program.run` has it, and nothing is checked."""
    from .jit.thread_pool import team

    team.run(table, np.array([count, first, shown_own, shown_source, sequence], np.int64), torch.get_num_threads())


def _is_shared(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of the same memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def stride_of(tensor: Tensor) -> int:
    """Bytes from one row to the next."""
    if tensor.dim() > 1 and tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
        raise ValueError("rows: their numbers must stand one after another")
    return tensor.stride(0) * tensor.element_size()


def bits_of(number: float) -> int:
    """The bits of a float32, as fields hold it."""
    return int.from_bytes(struct.pack("<f", number), "little", signed=True)
