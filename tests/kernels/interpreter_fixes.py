"""What Triton's interpreter gets wrong, or warns of, mended for as long as a test or a dry run needs it.

For processes whose kernels are interpreted already: whether they are is decided where they are decorated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def multiplying_bfloat16() -> Iterator[None]:
    """Mends the interpreter's matrix product: it holds bfloat16 as 16 bits in an integer, and multiplies those."""
    create_dot: Any = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != triton.language.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), triton.language.float32)

    def mended(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *others)

    InterpreterBuilder.create_dot = mended
    try:
        yield
    finally:
        InterpreterBuilder.create_dot = create_dot


@contextmanager
def dividing_by_zero() -> Iterator[None]:
    """The interpreter divides with NumPy, which warns; on a GPU the result is inf, and kernels take another number."""
    with np.errstate(divide="ignore"):
        yield
