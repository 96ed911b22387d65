"""How many slots there is memory for, and what is said where memory does not do."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from typing import TYPE_CHECKING

import torch

from .errors import RequestError, internal

if TYPE_CHECKING:
    from .models import LoadedModel

log = logging.getLogger(__name__)


def slots_within(loaded: LoadedModel, most: int, fraction: float) -> int:
    """The slots that a share of the free memory has room for, at most `most` and at least one.

    0 where the model cannot be run in slots. A CPU's caches take memory only as far as they are used, so that there the
    share is a bound, not a cost.
    """
    if loaded.layout is None:
        return 0
    room = int(free_bytes(loaded.model.device) * fraction)
    slots = max(1, min(most, room // loaded.layout.bytes_of_slot))
    if slots < most:
        log.warning(
            "%s has %d slots instead of %d: caches of %.1f MB each, in %.0f%% of the free memory",
            *(loaded.name, slots, most, loaded.layout.bytes_of_slot / 1e6, 100 * fraction),
        )
    return slots


def free_bytes(device: torch.device) -> int:
    """The memory that a device has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Gives memory that is free within this process back to the system, where the C library can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def out_of_memory() -> RequestError:
    """The status of a request that needs more memory than there is."""
    return internal("OUT_OF_MEMORY", "the model needs more memory for this request than there is")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a fault, of Python's or of torch's, is that memory does not do."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
