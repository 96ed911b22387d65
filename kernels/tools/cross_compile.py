"""Compiles launches for GPUs that need not be there.

Triton's own JIT specialises arguments and looks into its cache; only the driver, which would ask the GPU what it is, is
replaced. So a server on this GPU would compile the same kernels, and look them up by the same keys.
Tensors may be torch's meta tensors: they count as aligned to 16 bytes, as torch's allocations are.
"""
# Triton comes without types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ..common.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),  # A100
    "sm_86": GPUTarget("cuda", 86, 32),  # A10, RTX 30
    "sm_89": GPUTarget("cuda", 89, 32),  # L4, L40S, RTX 40
    "sm_90": GPUTarget("cuda", 90, 32),  # H100, H200
    "sm_100": GPUTarget("cuda", 100, 32),  # B200
    "gfx90a": GPUTarget("hip", "gfx90a", 64),  # MI250
    "gfx942": GPUTarget("hip", "gfx942", 64),  # MI300
}


class _Driver:
    """Answers the JIT's questions about a GPU before it compiles. It cannot launch anything."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        # The JIT caches kernels by device; each target counts as a device.
        return f"{self._target.backend}:{self._target.arch}"

    def get_current_stream(self, device: str) -> None: ...


@contextmanager
def compiling_for(target: str) -> Generator[None]:
    """Makes Triton's JIT compile for a GPU of this target. No other thread may launch kernels meanwhile."""
    config: Any = triton.runtime.driver
    before = config._active
    config.set_active(_Driver(TARGETS[target]))
    try:
        yield
    finally:
        config._active = before


def compile_launch(launch: Launch) -> Any:
    """Returns the CompiledKernel of a launch, inside `compiling_for`; from Triton's cache if it is there."""
    if not isinstance(launch.kernel, JITFunction):
        raise RuntimeError("TRITON_INTERPRET is set: there is nothing to compile")
    return launch.kernel.warmup(
        grid=launch.grid, **launch.arguments, num_warps=launch.num_warps, num_stages=launch.num_stages
    )
