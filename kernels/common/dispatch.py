"""Chooses between Triton kernels and torch references. No other module decides this."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from torch import Tensor

from .launch import is_recording

Impl = Literal["triton", "reference"]

_HAS_TRITON = find_spec("triton") is not None  # not on macOS, nor with every build of torch for aarch64


def select_impl(tensor: Tensor, impl: Impl | None = None) -> Impl:
    """Returns "triton" for a tensor on a GPU, CUDA or ROCm, where Triton is installed, and while launches are recorded.

    Elsewhere returns "reference", the torch reference. `impl` forces one of them; ValueError if it is neither.
    """
    if impl is None:
        return "triton" if _HAS_TRITON and (tensor.is_cuda or is_recording()) else "reference"
    if impl not in ("triton", "reference"):
        raise ValueError(f"impl: must be triton or reference, not {impl!r}")
    return impl
