"""One launch of a Triton kernel, as a value: apart from launching, so that it can be compiled, audited and counted.

Knows nothing of what a kernel does. Each kernel's module makes launches by functions named `plan`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Records(threading.local):
    """Where this thread's launches go instead of a GPU, if anywhere."""

    launches: list[Launch] | None = None


_records = _Records()


@contextmanager
def recorded() -> Generator[list[Launch]]:
    """Keeps this thread's launches and runs none, on any device: what a program would launch, known without a GPU.

    What they would have written stays as it is, so nothing should be made of it.
    """
    before, _records.launches = _records.launches, []
    try:
        yield _records.launches
    finally:
        _records.launches = before


def is_recorded() -> bool:
    """Whether this thread is within `recorded`."""
    return _records.launches is not None


class Launch(NamedTuple):
    """All that one launch is given."""

    kernel: Any  # what triton.jit made: a JITFunction, or the interpreter's
    grid: tuple[int, ...]  # programs along each axis
    arguments: Mapping[str, Any]  # by parameter: tensors, tuples of tensors, numbers, constexprs
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Launches on the current stream of the device where the tensors are. Nothing waits for it."""
        if _records.launches is not None:
            _records.launches.append(self)
            return
        out = self.arguments["out"]  # as every kernel calls what it writes
        with torch.cuda.device_of(out):  # Triton launches on the current device
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)
