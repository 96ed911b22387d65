"""Memory: how much is free, giving it back, and what is said where it does not do."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

from .errors import RequestError, internal


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
