"""Which slots of the KV cache are free, and which sequence has which of the others."""

from __future__ import annotations

import heapq

from .sequence import Sequence


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
