"""How long each kernel must take on a GPU, on paper: by the bytes it moves at least, and by its arithmetic.

The roofline of Williams, Waterman and Patterson 2009 (Communications of the ACM 52(4)). Knows variants; runs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .cases import KernelCase


class Gpu(NamedTuple):
    """What a GPU can do at most, in a second."""

    name: str
    bytes: float
    half_flops: float  # of dense matrix products on tensor cores, bfloat16 or float16
    float_flops: float  # of float32, as three products of tf32


# NVIDIA H100 Tensor Core GPU datasheet, SXM: 3.35 TB/s; 1,979 and 989 TFLOPS "with sparsity", twice the dense figures.
H100 = Gpu("H100 SXM", 3.35e12, 989.5e12, 494.5e12 / 3)


class Roofline(NamedTuple):
    """One kernel's."""

    variant: KernelCase
    memory_seconds: float
    arithmetic_seconds: float

    @property
    def bound(self) -> str:
        """What takes longer."""
        return "arithmetic" if self.arithmetic_seconds > self.memory_seconds else "memory"


def rooflines(variants: Iterable[KernelCase], gpu: Gpu = H100) -> list[Roofline]:
    """Those of some variants."""
    return [
        Roofline(
            variant,
            variant.least_bytes / gpu.bytes,
            variant.flops / (gpu.half_flops if variant.is_half else gpu.float_flops),
        )
        for variant in variants
    ]
