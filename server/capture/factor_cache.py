"""The factors of the keys in the slots of a KV cache, for methods that have factors: each is computed once.

A decode step computes the factor of its own key, and reads those of the keys before. Without this cache, the step would
compute all of them again, which takes as many operations as the head is wide times what attention takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..transfer import cached_index, int_tensor
from .context import AttentionKind, LayerKey
from .plan import Method
from .recorder import Factors


class _Table(NamedTuple):
    """The factors of one layer, for all slots."""

    factors: Tensor  # float32 [slots, H, positions]; 0 where a factor is not computed
    counts: NDArray[np.int64]  # [slots]: how many factors of each slot are computed, from the first position


class FactorCache:
    """The factors of all slots of one runner. Takes memory only for layers whose factors somebody asks for."""

    def __init__(self, num_slots: int, lengths: tuple[int, int]) -> None:
        """`lengths` are the positions of a slot for the target and for the source."""
        self._num_slots = num_slots
        self._lengths: dict[AttentionKind, int] = dict(zip(("decoder_self", "cross"), lengths, strict=True))
        self._tables: dict[tuple[Method, LayerKey], _Table] = {}

    def forget(self, slot: int) -> None:
        """Forgets the factors of a slot whose keys become those of another sequence."""
        self.take_back(slot, 0, 0)

    def take_back(self, slot: int, num_target: int, num_source: int) -> None:
        """Forgets the factors of a slot behind so many positions of the target and of the source."""
        for (_, layer_key), table in self._tables.items():
            count = num_source if layer_key.kind == "cross" else num_target
            table.factors[slot, :, count:] = 0  # they may be NaN, and 0 times NaN is NaN
            table.counts[slot] = min(table.counts[slot], count)

    def of_step(
        self, method: Method, lengths: Mapping[int, tuple[int, int]], slots: slice, rows: Tensor | None
    ) -> Factors:
        """Returns the factors of a step of `slots`, for the sequences that ask for the method.

        `lengths` has, for the slot of each of these sequences, how many positions of target and source the step sees.
        `rows` selects rows of the step; None: all.
        """
        return _Step(self, method, lengths, slots, rows).factors

    def table(self, method: Method, layer_key: LayerKey, value: Tensor) -> _Table:
        """Returns the table of a layer, which takes values `[B, Hkv, S, D]`. The first call makes the table."""
        found = self._tables.get((method, layer_key))
        if found is None:
            heads = method.factors(layer_key, value[:1, :, :1]).shape[1]
            shape = (self._num_slots, heads, self._lengths[layer_key.kind])
            found = _Table(torch.zeros(shape, device=value.device), np.zeros(self._num_slots, np.int64))
            self._tables[method, layer_key] = found
        return found


class _Step:
    """The factors of one step for the sequences of one plan."""

    def __init__(
        self,
        cache: FactorCache,
        method: Method,
        lengths: Mapping[int, tuple[int, int]],
        slots: slice,
        rows: Tensor | None,
    ) -> None:
        self._cache = cache
        self._method = method
        self._slots = slots
        self._rows = rows
        self._sequence_slots = np.array([*lengths])
        # How many keys each sequence has: its own new key is the last of the target.
        target, source = zip(*lengths.values(), strict=True)
        self._ends: dict[AttentionKind, NDArray[np.int64]] = {
            "decoder_self": np.array(target, np.int64),
            "cross": np.array(source, np.int64),
        }
        self._last: Tensor | None = None  # the positions of the new keys of the target, on the device

    def factors(self, layer_key: LayerKey, value: Tensor) -> Tensor:
        """Returns the factors of the step's rows, from the values `[B, Hkv, S, D]` of all its slots."""
        table = self._cache.table(self._method, layer_key, value)
        ends, done = self._ends[layer_key.kind], table.counts[self._sequence_slots]
        if layer_key.kind == "decoder_self" and (done == ends - 1).all():
            self._add_last(layer_key, value, table)
        else:
            for slot, begin, end in zip(self._sequence_slots, done, ends, strict=True):
                if begin < end:
                    row = slot - self._slots.start
                    added = self._method.factors(layer_key, value[row : row + 1, :, begin:end])
                    table.factors[slot, :, begin:end] = added[0]
        table.counts[self._sequence_slots] = ends
        found = table.factors[self._slots, :, : value.shape[2]]
        return found if self._rows is None else found[self._rows]

    def _add_last(self, layer_key: LayerKey, value: Tensor, table: _Table) -> None:
        """Adds the factor of the new key of each sequence."""
        if self._last is None:
            self._last = int_tensor((self._ends["decoder_self"] - 1).tolist(), value.device)
        slots = cached_index(tuple(self._sequence_slots.tolist()), value.device)
        new = value[slots - self._slots.start, :, self._last]  # [n, Hkv, D]
        table.factors[slots, :, self._last] = self._method.factors(layer_key, new[:, :, None])[:, :, 0]
