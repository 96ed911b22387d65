"""Which slots of the KV cache are free, which sequence has which of the others, and what the slots hold."""

from __future__ import annotations

import heapq

from torch import Tensor

from ..capture import FactorCache
from ..models import KVCache
from ..sampling import Sampler
from .sequence import Sequence, SwappedSequence


class SlotAllocator:
    """The slots of one runner. Gives out the first free slot, so that the slots in use stay close together."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count))  # a heap
        self.sequences: dict[int, Sequence] = {}  # by slot

    @property
    def num_free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    @property
    def next_slot(self) -> int:
        """The slot that `allocate` gives out next."""
        return self._free[0]

    def allocate(self, sequence: Sequence) -> int:
        """Gives a sequence the first free slot. There must be one."""
        sequence.slot = heapq.heappop(self._free)
        self.sequences[sequence.slot] = sequence
        return sequence.slot

    def release(self, slot: int) -> None:
        """Takes a slot from its sequence."""
        del self.sequences[slot]
        heapq.heappush(self._free, slot)

    def sparse_slot(self) -> int | None:
        """The last slot in use, where more than half of the slots between the first and the last are idle.

        Idle slots between slots in use run along in each step. To move one sequence costs less than they do, and it
        leaves the other sequences where they are.
        """
        if not self.sequences:
            return None
        first, last = min(self.sequences), max(self.sequences)
        is_dense = last - first + 1 <= 2 * len(self.sequences)
        return None if is_dense or self.next_slot > last else last


class SlotContents:
    """What the slots of one runner hold: what moves with a sequence from slot to slot."""

    def __init__(
        self, slots: SlotAllocator, cache: KVCache, sampler: Sampler, tokens: Tensor, factors: FactorCache
    ) -> None:
        """`tokens` are the tokens that the decoder reads next, by slot, int64 `[slots, 1]`."""
        self._slots = slots
        self._cache = cache
        self._sampler = sampler
        self._tokens = tokens
        self._factors = factors

    def swap_out(self, sequence: Sequence) -> None:
        """Frees the slot of a sequence. Its cache moves to the host."""
        # What may lack memory comes first: until then the sequence stays as it is.
        cache = self._cache.swap_out(sequence.slot, sequence.num_cached, sequence.source_length)
        token = self._tokens[sequence.slot].clone()
        sequence.swapped = SwappedSequence(cache, self._sampler.swap_out(sequence.slot), token)
        sequence.is_preempted = True
        self.release(sequence)

    def swap_in(self, sequence: Sequence) -> None:
        """Gives a sequence a slot again. There must be a free one. Where that fails, the slot is free again."""
        swapped = sequence.swapped
        assert swapped is not None
        slot = self._slots.allocate(sequence)
        try:
            self._cache.swap_in(slot, swapped.cache)
            self._sampler.swap_in(slot, swapped.sampler_state)
            self._tokens[slot] = swapped.token
        except Exception:
            self.release(sequence)
            raise
        sequence.swapped, sequence.is_preempted = None, False

    def move(self, sequence: Sequence) -> None:
        """Moves a sequence to the first free slot. There must be one. Where that fails, the sequence stays."""
        former, slot = sequence.slot, self._slots.allocate(sequence)
        try:
            self._cache.move(former, slot, sequence.num_written, sequence.source_length)
            self._tokens[slot] = self._tokens[former]
            self._sampler.swap_in(slot, self._sampler.swap_out(former))
        except Exception:
            self._clear(slot, sequence)
            sequence.slot = former
            raise
        self._clear(former, sequence)

    def release(self, sequence: Sequence) -> None:
        """Frees the slot of a sequence. What the slot holds is lost."""
        self._clear(sequence.slot, sequence)

    def _clear(self, slot: int, sequence: Sequence) -> None:
        self._slots.release(slot)
        self._factors.forget(slot)
        # The cache may hold NaN, and 0 times NaN is NaN: it is zeroed, the position of the next token included.
        self._cache.clear(slot, sequence.num_written, sequence.source_length)
