"""How many slots there is memory for."""

from __future__ import annotations

import logging

from ..memory import free_bytes
from ..models.loader import LoadedModel

log = logging.getLogger(__name__)


def slots_that_fit(loaded: LoadedModel, most: int, fraction: float) -> int:
    """The slots that a share of the free memory has room for, at most `most` and at least one.

    0 where the model cannot be run in slots. A CPU's caches take memory only as far as they are used, so that there the
    share is a bound, not a cost.
    """
    if loaded.backend is None:
        return 0
    room = int(free_bytes(loaded.model.device) * fraction)
    slots = max(1, min(most, room // loaded.backend.bytes_per_slot))
    if slots < most:
        log.warning(
            "%s has %d slots instead of %d: caches of %.1f MB each, in %.0f%% of the free memory",
            *(loaded.name, slots, most, loaded.backend.bytes_per_slot / 1e6, 100 * fraction),
        )
    return slots
