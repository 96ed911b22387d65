"""TokenHistory: the tokens of each slot so far, on the device, and the length of each slot on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..transfer import int_tensor, to_device


class SwappedTokens(NamedTuple):
    """The history of one sequence without a slot."""

    length: int
    ids: Tensor | None  # int64 [length]; None where the tokens are not needed


class TokenHistory:
    """The length of each slot, and the tokens of the slots whose requests need their tokens. Owned by the sampler."""

    def __init__(self, num_slots: int, max_length: int, device: torch.device) -> None:
        """`max_length` is the most tokens that a slot keeps. Later tokens are counted, but not kept."""
        self.device = device
        self._max_length = max_length
        # The last column takes the tokens that are not kept.
        self._ids = torch.zeros(num_slots, max_length + 1, dtype=torch.int64, device=device)
        # The lengths stand twice, on the device and on the host: no step waits for a length.
        self._lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._host_lengths: NDArray[np.int64] = np.zeros(num_slots, np.int64)

    def start(self, slot: int, ids: Sequence[int], *, keeps_tokens: bool) -> None:
        """Starts a slot with its first tokens, at least one and at most `max_length`."""
        self._host_lengths[slot] = len(ids)
        if keeps_tokens:
            # Unwritten positions repeat the first token: a penalty on a token twice is the same as once.
            row = np.full(self._ids.shape[1], ids[0], np.int64)
            row[: len(ids)] = ids
            self._ids[slot] = to_device(row, self.device)
            self._lengths[slot] = len(ids)

    def swap_out(self, slot: int, *, keeps_tokens: bool) -> SwappedTokens:
        """Copies what a slot holds, so that another slot can take it over."""
        length = self.length(slot)
        ids = self._ids[slot, : min(length, self._max_length)].clone() if keeps_tokens else None
        return SwappedTokens(length, ids)

    def swap_in(self, slot: int, swapped: SwappedTokens) -> None:
        """Starts a slot with what another slot held."""
        self._host_lengths[slot] = swapped.length
        if swapped.ids is not None:
            self._ids[slot] = swapped.ids[0]
            self._ids[slot, : len(swapped.ids)] = swapped.ids
            self._lengths[slot] = swapped.length

    def length(self, slot: int) -> int:
        """The number of tokens of a slot, tokens that are not kept included."""
        return int(self._host_lengths[slot])

    def append(self, slots: Sequence[int], keeping_rows: Tensor | None, tokens: Tensor) -> None:
        """Appends a token to each slot: `tokens[slot]`, of int64 `[n]`.

        `keeping_rows`, int64, are those of the slots that keep their tokens; None: no slot does.
        """
        self._host_lengths[slots] += 1
        if keeping_rows is None:
            return
        lengths = self._lengths.index_select(0, keeping_rows)
        self._ids[keeping_rows, lengths.clamp(max=self._max_length)] = tokens.index_select(0, keeping_rows)
        self._lengths.index_copy_(0, keeping_rows, lengths + 1)

    def branch(self, slots: Sequence[int], parents: Sequence[int], tokens: Tensor, keeping: Sequence[int]) -> None:
        """Gives each slot the tokens of its parent, with `tokens`, int64 `[n]`, in place of the last ones.

        `keeping` are the numbers of the slots in the list that keep their tokens.
        """
        self._host_lengths[slots] = self._host_lengths[parents]
        if not keeping:
            return
        rows, parent_rows = (int_tensor([list_[i] for i in keeping], self.device) for list_ in (slots, parents))
        ids, lengths = self._ids.index_select(0, parent_rows), self._lengths.index_select(0, parent_rows)
        last = tokens.index_select(0, int_tensor(keeping, self.device))
        ids.scatter_(1, (lengths - 1).clamp(max=self._max_length)[:, None], last[:, None])
        self._ids.index_copy_(0, rows, ids)
        self._lengths.index_copy_(0, rows, lengths)

    def read(self, slots: Sequence[int], rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tokens of slots, `[slots, longest]`, and the number of tokens of each, `[slots, 1]`.

        `rows` are the slots on the device.
        """
        longest = min(int(self._host_lengths[slots].max()), self._max_length)
        return self._ids[:, :longest].index_select(0, rows), self._lengths.index_select(0, rows)[:, None]
