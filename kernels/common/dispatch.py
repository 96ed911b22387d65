"""Which implementation runs: the one place that decides."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from torch import Tensor

from .launch import is_recorded

Impl = Literal["triton", "reference"]

_HAS_TRITON = find_spec("triton") is not None  # not on macOS, nor with every build of torch for aarch64


def select_impl(tensor: Tensor, impl: Impl | None = None) -> Impl:
    """Triton for a tensor on a GPU, CUDA's or ROCm's, where it is installed, and wherever launches are only recorded.

    The torch reference elsewhere. `impl` forces one; ValueError if it is neither.
    """
    if impl is None:
        return "triton" if _HAS_TRITON and (tensor.is_cuda or is_recorded()) else "reference"
    if impl not in ("triton", "reference"):
        raise ValueError(f"impl: must be triton or reference, not {impl!r}")
    return impl
