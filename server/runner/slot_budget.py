"""How many slots there is memory for."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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


def divide_memory(models: Sequence[LoadedModel], max_slots: Sequence[int], fraction: float) -> list[float]:
    """Divides a share of the free memory between the models of a server. Returns the share of each model.

    The models of a device share its memory in proportion to what their caches need: the bytes of a slot times
    `max_slots`. So where memory lacks, all models of a device lose the same part of their slots. A model without slots
    has no cache of its own, and takes nothing from the others.
    """
    needs = [
        loaded.backend.bytes_per_slot * slots if loaded.backend is not None else 0
        for loaded, slots in zip(models, max_slots, strict=True)
    ]
    devices = [loaded.model.device for loaded in models]
    totals = {
        device: sum(need for need, other in zip(needs, devices, strict=True) if other == device) for device in devices
    }
    return [fraction * need / totals[device] if need else fraction for need, device in zip(needs, devices, strict=True)]
