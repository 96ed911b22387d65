"""CPU programs: matrix products, norms and attention in order, run by compiled code without Python in between.

A model's step is some hundred small operations. As a torch call, each operation costs some microseconds of Python,
starts threads, waits for them, and holds the interpreter lock. A program runs a whole step as one call that holds no
lock. Matrix products read weights in panels that fit registers, at the speed of the memory for few rows. All numbers
are float32; weights and the inputs of products may be int8, whose sums are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .jit import opcodes as op
from .jit.opcodes import MAX_HEAD_WIDTH, MAX_POSITIONS
from .operations import Fields, OperationList, float_bits, row_stride, run_operations, share_memory
from .packed_weights import PackedWeight
from .support import is_supported

Activation = Literal["none", "relu", "silu", "gelu"]


class Attention(NamedTuple):
    """One attention of a program: a query for each row, over keys and values in slots.

    Each slot sees its first keys, as many as `lengths` says, at least one.
    """

    keys: Tensor  # [slots, heads, positions, width]
    values: Tensor  # [slots, heads, positions, value width]
    lengths: Tensor  # int64 [slots] or [slots, 1]
    scale: float
    new_key_value: tuple[Tensor, Tensor] | None = None  # [rows, heads * width] each: appended first, and seen, too


class Program(OperationList):
    """A list of operations on fixed tensors, which uses the first rows of each tensor.

    The program keeps its tensors alive. One thread at a time runs it.
    """

    def __init__(self, max_rows: int) -> None:
        """Makes an empty program for at most `max_rows` rows. Raises RuntimeError where programs do not run."""
        if not is_supported():
            raise RuntimeError("this machine does not run CPU programs")
        super().__init__(max_rows)
        self._sequences: Fields | None = None  # of the run: the first row of each sequence, and its number of rows

    def buffer(self, width: int) -> Tensor:
        """Allocates a tensor for intermediate results, float32 `[max_rows, width]`."""
        return torch.zeros(self._max_rows, width)

    def matmul(
        self,
        x: Tensor,
        weight: PackedWeight,
        out: Tensor,
        *,
        activation: Activation = "none",
        added: Tensor | None = None,
    ) -> None:
        """Adds an operation: out = activation(x @ weight.T + bias) + added, float32 `[rows, in]` to `[rows, out]`.

        With int8 weights each row of x is quantized with a scale of its own. Raises ValueError where `out` shares
        memory with `x` or `added`: rows may be read again after other rows have been written.
        """
        from .jit.primitives import ACTIVATIONS

        if any(other is not None and share_memory(out, other) for other in (x, added)):
            raise ValueError("out: must not share memory with x or added")
        scales: Tensor | None = None
        if weight.channel_scales is not None:
            x, scales = self._quantize(x)
        fields = self._add_operation(op.MATMUL, x, out, weight.out_features)
        fields[op.WEIGHT] = self._address(weight.panels)
        fields[op.DEPTH] = weight.panels.shape[1]
        fields[op.BIAS] = self._address(weight.bias)
        fields[op.ACTIVATION] = ACTIVATIONS.index(activation)
        fields[op.ADDED] = self._address(added)
        fields[op.ADDED_STRIDE] = 0 if added is None else row_stride(added)
        fields[op.SCALES] = self._address(scales)
        fields[op.CHANNEL_SCALES] = self._address(weight.channel_scales)
        fields[op.CORRECTIONS] = self._address(weight.corrections)
        # Tasks small enough to share among threads, and large enough to be worth taking.
        fields[op.PANELS_PER_TASK] = min(8, -(-len(weight.panels) // 16))

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, out: Tensor) -> None:
        """Adds LayerNorm of each row, `[rows, width]`; `out` may be x."""
        fields = self._add_operation(op.LAYER_NORM, x, out, x.shape[1])
        fields[op.WEIGHT], fields[op.BIAS] = self._address(weight), self._address(bias)
        fields[op.EPSILON] = float_bits(epsilon)

    def attend(self, query: Tensor, attention: Attention, probabilities: Tensor, out: Tensor) -> None:
        """Adds attention with one query for each row: `[rows, heads * width]` to `[rows, heads * value width]`.

        `probabilities`, `[rows, heads, positions]`, receives the probabilities; positions that a row does not see
        become 0, up to the number of positions that `run` gets.
        """
        fields = self._add_operation(op.ATTEND, query, out, attention.keys.shape[3])
        self._set_keys_and_values(fields, attention.keys, attention.values)
        self._set_probabilities(fields, probabilities)
        fields[op.LENGTHS] = self._address(attention.lengths)
        fields[op.SCALE] = float_bits(attention.scale)
        if attention.new_key_value is not None:
            key, value = attention.new_key_value
            fields[op.HAS_NEW_KV] = 1
            fields[op.NEW_KEY], fields[op.NEW_VALUE] = self._address(key), self._address(value)
            fields[op.NEW_KEY_STRIDE], fields[op.NEW_VALUE_STRIDE] = row_stride(key), row_stride(value)

    def attend_sequences(
        self,
        query: Tensor,
        keys_and_values: Tensor,
        heads: int,
        scale: float,
        out: Tensor,
        *,
        is_causal: bool = False,
        is_cross: bool = False,
        probabilities: Tensor | None = None,
    ) -> None:
        """Adds attention of each row of a sequence over the keys of the sequence. Raises ValueError for too wide heads.

        Args:
            query: `[rows, width]`. `run` gets the number of rows of each sequence.
            keys_and_values: Side by side, `[rows, 2 * width]`.
            heads: The number of heads. A head has MAX_HEAD_WIDTH numbers at most.
            scale: What scores are multiplied with.
            out: `[rows, width]`.
            is_causal: Whether a row sees the keys up to its own number only.
            is_cross: Whether keys and values are rows of another program: `run` gets their number in each sequence.
            probabilities: Receives the probabilities, `[rows, heads, positions]`, as `attend` writes them.
        """
        width = query.shape[1]
        if width // heads > MAX_HEAD_WIDTH:
            raise ValueError(f"heads: must have {MAX_HEAD_WIDTH} numbers at most, not {width // heads}")
        fields = self._add_operation(op.ATTEND_SEQUENCES, query, out, width // heads)
        self._sequences = np.zeros((4, self._max_rows), np.int64) if self._sequences is None else self._sequences
        places = [row.ctypes.data for row in self._sequences]
        fields[[op.BEGINS, op.LENGTHS]] = places[:2]
        fields[[op.KEY_BEGINS, op.KEY_LENGTHS]] = places[2:] if is_cross else places[:2]
        fields[[op.IS_CAUSAL, op.IS_CROSS_SEQUENCE]] = is_causal, is_cross
        # As one slot: how long sequences are, only a run knows.
        both = keys_and_values[:, :width], keys_and_values[:, width:]
        keys, values = (each.view(len(each), heads, -1).transpose(0, 1)[None] for each in both)
        self._set_keys_and_values(fields, keys, values)
        fields[op.SCALE] = float_bits(scale)
        if probabilities is not None:
            self._set_probabilities(fields, probabilities)

    def scatter_kv(self, projected: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Adds the copy of keys and values, side by side in `[rows, heads * (width + value width)]`, into slots.

        `slots` and `positions` say where each row goes, int64 `[rows]`.
        """
        fields = self._add_operation(op.SCATTER_KV, projected, projected, keys.shape[3])
        self._set_keys_and_values(fields, keys, values)
        fields[op.SLOTS], fields[op.ROW_POSITIONS] = self._address(slots), self._address(positions)

    def embed(
        self,
        ids: Tensor,
        table: Tensor,
        scale: float,
        positions: Tensor,
        lengths: Tensor,
        out: Tensor,
        *,
        special: tuple[int, Tensor] | None = None,
    ) -> None:
        """Adds embeddings: a row of the table, times `scale`, plus a row of positions, for ids int64 `[rows, 1]`.

        The position of a row is the length of its slot. A token outside the table gives NaN. `special` is a token id,
        and the table of positions for tokens of this id.
        """
        fields = self._add_operation(op.EMBED, ids, out, table.shape[1])
        fields[op.TABLE], fields[op.TABLE_SCALE] = self._address(table), float_bits(scale)
        fields[op.TABLE_ROWS] = len(table)
        fields[op.POSITIONS] = fields[op.SPECIAL_POSITIONS] = self._address(positions)
        fields[op.SPECIAL_ID] = -1
        if special is not None:
            fields[op.SPECIAL_ID], fields[op.SPECIAL_POSITIONS] = special[0], self._address(special[1])
        fields[op.LENGTHS] = self._address(lengths)

    def run(
        self,
        num_rows: int,
        *,
        x: Tensor | None = None,
        first_slot: int = 0,
        num_self_positions: int = 0,
        num_cross_positions: int = 0,
        sequence_lengths: Sequence[int] = (),
        key_lengths: Sequence[int] = (),
        num_operations: int | None = None,
        epilogue: Fields | None = None,
    ) -> None:
        """Runs the program for some rows, with as many threads as torch uses.

        Args:
            num_rows: How many rows.
            x: What the first operation reads instead of its own input: a tensor of the same kind.
            first_slot: The slot of row 0; row i has slot `first_slot + i`.
            num_self_positions: How many positions of each probability row self-attention writes.
            num_cross_positions: Likewise cross-attention.
            sequence_lengths: How many rows each sequence has, where rows form sequences, which follow one another.
            key_lengths: How many keys each sequence has, of attentions over the rows of another program.
            num_operations: How many operations run, from the first; None: all.
            epilogue: Operations that run then (see `store_rows` and `LinearArgmax.prepare`).

        Raises:
            ValueError: There are too many rows, or sequences are too long or do not have all rows.
        """
        if not 0 < num_rows <= self._max_rows:
            raise ValueError(f"num_rows: must be 1 to {self._max_rows}, not {num_rows}")
        if self._sequences is not None:
            self._place_sequences(0, sequence_lengths, num_rows)
            if key_lengths:
                self._place_sequences(2, key_lengths, sum(key_lengths))
        table = self.table[:num_operations]
        if epilogue is not None:
            table = np.concatenate([table, epilogue])
        elif x is not None:
            table = np.array(table, np.int64)  # a copy for this run
        if x is not None:
            table[0, op.X], table[0, op.X_STRIDE] = x.data_ptr(), row_stride(x)
        run_operations(table, num_rows, first_slot, num_self_positions, num_cross_positions, len(sequence_lengths))

    def _place_sequences(self, first: int, lengths: Sequence[int], num_rows: int) -> None:
        """Writes where the rows, or the keys, of the sequences of a run are. Raises ValueError."""
        assert self._sequences is not None
        if sum(lengths) != num_rows or min(lengths) < 1 or max(lengths) > MAX_POSITIONS:
            raise ValueError(f"sequence_lengths: must be 1 to {MAX_POSITIONS} each, and {num_rows} together")
        self._sequences[first + 1, : len(lengths)] = lengths
        np.cumsum(lengths[:-1], out=self._sequences[first, 1 : len(lengths)])  # the first sequence begins at row 0


class PackedMatmul:
    """x @ weight.T + bias as a function: float32 `[..., in]` to `[..., out]`, with as many threads as torch uses."""

    def __init__(self, weight: PackedWeight) -> None:
        self.weight = weight
        program = Program(1)
        program.matmul(program.buffer(weight.in_features), weight, program.buffer(weight.out_features))
        self._table = program.table  # each call fills in its addresses

    def __call__(self, x: Tensor) -> Tensor:
        """x: float32 `[..., in]`, at least one row."""
        rows = x.reshape(-1, self.weight.in_features).contiguous()
        num_rows = len(rows)
        out = torch.empty(num_rows, self.weight.out_features)
        table = np.array(self._table, np.int64)
        table[0, op.X] = rows.data_ptr()
        if len(table) > 1:  # the first operation quantizes
            width = int(table[0, op.OUT_STRIDE])
            quantized, scales = torch.empty(num_rows, width, dtype=torch.uint8), torch.empty(num_rows)
            table[0, op.OUT] = table[1, op.X] = quantized.data_ptr()
            table[:, op.SCALES] = scales.data_ptr()
        table[-1, op.OUT] = out.data_ptr()
        run_operations(table, num_rows)
        return out.view(*x.shape[:-1], self.weight.out_features)
