"""Memory: how much is free, how unused memory returns to the system, and the errors of a lack of memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from pathlib import Path

import torch

from .errors import out_of_memory

# What torch's errors of other classes say where memory lacks: on a CPU, of CUDA itself, and of CUDA's libraries.
_LACKS = ("allocate memory", "out of memory", "ALLOC_FAILED")

# Where Linux shows the limits of a container: Documentation/admin-guide/cgroup-v2.rst.
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """The free memory of a device, in bytes. On a CPU: at most what the limit of the container leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(min(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _free_bytes_of_container()))


def _free_bytes_of_container() -> float:
    """What the memory limit of this container leaves, in bytes; infinity without a limit.

    Pages of files that nobody uses count as free, because Linux takes these pages back first.
    """
    try:
        limit, used = (int((_CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = (_CGROUP / "memory.stat").read_text().split()
        files = int(statistics[statistics.index("inactive_file") + 1])
    except (OSError, ValueError):  # without a limit, memory.max has the word "max"
        return math.inf
    return max(0, limit - used + files)


def used_bytes(device: torch.device) -> int | None:
    """The bytes that tensors take on a GPU; None on a CPU, where the process has the memory."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def give_back() -> None:
    """Return the free memory of this process to the system, if the C library can."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def release_memory_of(error: Exception) -> Exception:
    """An out-of-memory error as a RequestError, which holds no tensors; any other error as it is.

    The traceback of torch's error holds the tensors of the pass that failed. Code that keeps an error while other
    passes run must keep the RequestError.
    """
    return out_of_memory() if is_out_of_memory(error) else error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python or of torch is a lack of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKS)
