"""The least time of each kernel on a GPU, computed from the bytes it must move and from its arithmetic.

This is the roofline model of Williams, Waterman and Patterson 2009 (Communications of the ACM 52(4)).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .cases import KernelCase


class Gpu(NamedTuple):
    """The greatest rates of a GPU, in a second."""

    name: str
    bytes: float
    half_flops: float  # of dense matrix products on tensor cores, bfloat16 or float16
    float_flops: float  # of float32, as three products of tf32


# NVIDIA H100 Tensor Core GPU datasheet, SXM: 3.35 TB/s; 1,979 and 989 TFLOPS "with sparsity", twice the dense figures.
H100 = Gpu("H100 SXM", 3.35e12, 989.5e12, 494.5e12 / 3)


class Roofline(NamedTuple):
    """The least times of one case."""

    case: KernelCase
    memory_seconds: float
    arithmetic_seconds: float

    @property
    def bound(self) -> str:
        """Which of the two takes longer."""
        return "arithmetic" if self.arithmetic_seconds > self.memory_seconds else "memory"


def rooflines(cases: Iterable[KernelCase], gpu: Gpu = H100) -> list[Roofline]:
    """Returns the least times of some cases."""
    return [
        Roofline(
            case,
            case.least_bytes / gpu.bytes,
            case.flops / (gpu.half_flops if case.is_half else gpu.float_flops),
        )
        for case in cases
    ]
