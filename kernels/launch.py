"""One launch of a Triton kernel, as a value: apart from launching, so that it can be compiled, audited and counted.

Knows nothing of what a kernel does. Each kernel's module makes launches by functions named `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """All that one launch is given."""

    kernel: Any  # what triton.jit made: a JITFunction, or the interpreter's
    grid: tuple[int, ...]  # programs along each axis
    arguments: Mapping[str, Any]  # by parameter: tensors, tuples of tensors, numbers, constexprs
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Launches on the current stream of the device where the tensors are. Nothing waits for it."""
        tensors = (value for value in self.arguments.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device_of(next(tensors)):  # Triton launches on the current device
            self.kernel[self.grid](**self.arguments, num_warps=self.num_warps, num_stages=self.num_stages)
