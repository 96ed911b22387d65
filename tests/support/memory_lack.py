"""Lacks of memory in torch's operations, as torch reports them, at places that a test chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# What torch raises on a GPU, what it raises on a CPU, and what Python raises.
ERRORS: tuple[Callable[[], Exception], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 2147483648 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError,
)


class MemoryLack(TorchDispatchMode):
    """While it is a context, some operations of its thread that make tensors raise.

    Attributes:
        count: How many such operations there have been.
    """

    def __init__(self, lacks: Callable[[int], bool]) -> None:
        """`lacks` says of the number of such an operation whether it raises."""
        super().__init__()
        self.count = 0
        self._lacks = lacks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An operation that returns no part of what it got makes new tensors, before it does anything else.
        if any(each.alias_info is None for each in func._schema.returns):
            self.count += 1
            if self._lacks(self.count):
                raise ERRORS[self.count % len(ERRORS)]()
        return func(*args, **(kwargs or {}))
