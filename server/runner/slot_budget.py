"""How many slots there is memory for."""

from __future__ import annotations

import logging

import torch

from ..memory import free_bytes
from ..models import LoadedModel

log = logging.getLogger(__name__)


def caches_that_fit(loaded: LoadedModel, max_caches: int, fraction: float) -> int:
    """How many whole slots' caches have room in a share of the host's free memory: at least 1, at most `max_caches`."""
    assert loaded.backend is not None
    room = int(free_bytes(torch.device("cpu")) * fraction)
    return max(1, min(max_caches, room // loaded.backend.bytes_per_slot))


def slots_that_fit(loaded: LoadedModel, max_slots: int, fraction: float) -> int:
    """How many slots have room in a share of the free memory: at least 1, at most `max_slots`.

    `max_slots` where the model cannot be run in slots. The caches of a CPU take memory only as far as they are used:
    there, the share is a bound and not a cost.
    """
    if loaded.backend is None:
        return max_slots
    room = int(free_bytes(loaded.model.device) * fraction)
    slots = max(1, min(max_slots, room // loaded.backend.bytes_per_slot))
    if slots < max_slots:
        log.warning(
            "%s has %d slots instead of %d: caches of %.1f MB each, in %.0f%% of the free memory",
            *(loaded.name, slots, max_slots, loaded.backend.bytes_per_slot / 1e6, 100 * fraction),
        )
    return slots
