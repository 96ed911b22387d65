"""Slots are given out from the first on, and sequences far apart are moved together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.server.runner.slot_allocator import SlotAllocator


class Sequence:
    slot = -1


def filled(count: int) -> tuple[SlotAllocator, list[Any]]:
    slots, sequences = SlotAllocator(count), [Sequence() for _ in range(count)]
    for sequence in sequences:
        slots.allocate(sequence)
    return slots, sequences


def test_the_first_free_slot_comes_next():
    slots, sequences = filled(4)
    assert [sequence.slot for sequence in sequences] == [0, 1, 2, 3]
    assert slots.num_free == 0
    for slot in (3, 1):
        slots.release(slot)
    assert (slots.num_free, slots.next_slot) == (2, 1)
    assert slots.allocate(Sequence()) == 1


def test_a_slot_is_released_once():
    slots, _ = filled(2)
    slots.release(0)
    with pytest.raises(KeyError):
        slots.release(0)


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 15), max_size=16))
def test_moving_the_sparse_slot_ends_with_dense_slots(in_use):
    slots, _ = filled(16)
    for slot in set(range(16)) - in_use:
        slots.release(slot)
    num_moves = 0
    while (last := slots.sparse_slot()) is not None:
        sequence = slots.sequences[last]
        assert slots.allocate(sequence) < last
        slots.release(last)
        num_moves += 1
    assert num_moves <= len(in_use)
    assert len(slots.sequences) == len(in_use)
    if in_use:
        span = max(slots.sequences) - min(slots.sequences) + 1
        assert span <= 2 * len(in_use) or slots.next_slot > max(slots.sequences)
