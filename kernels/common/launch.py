"""`Launch`: a launch of a Triton kernel as a value, which can be run, compiled ahead of time, audited and recorded.

The module of each kernel makes launches in functions named `plan`.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class _Recording(threading.local):
    """The launches that this thread records instead of running them; None while it runs them."""

    launches: list[Launch] | None = None


_recording = _Recording()


@contextmanager
def record_launches() -> Generator[list[Launch]]:
    """Records this thread's launches and runs none of them, on any device.

    So it is known without a GPU what a program launches. The tensors that launches would write keep their content:
    their numbers mean nothing.
    """
    before, _recording.launches = _recording.launches, []
    try:
        yield _recording.launches
    finally:
        _recording.launches = before


def is_recording() -> bool:
    """Returns whether this thread is inside `record_launches`."""
    return _recording.launches is not None


class Launch(NamedTuple):
    """Everything that one launch needs."""

    kernel: Any  # what triton.jit returns: a JITFunction, or an interpreted function
    grid: tuple[int, ...]  # programs along each axis
    arguments: Mapping[str, Any]  # by parameter: tensors, tuples of tensors, numbers, constexprs
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Launches the kernel on the current stream of the device of the tensors, without waiting for it."""
        if _recording.launches is not None:
            _recording.launches.append(self)
            return
        out = self.arguments["out"]  # every kernel writes to a parameter of this name
        with torch.cuda.device_of(out):  # Triton launches on the current device
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)
