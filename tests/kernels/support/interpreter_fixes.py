"""What Triton's interpreter gets wrong, or warns of, mended for as long as a test or a dry run needs it.

For processes whose kernels are interpreted already: whether they are is decided where they are decorated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def fixed_interpreter() -> Iterator[None]:
    """Mends two things in the interpreter.

    Its matrix product holds bfloat16 as 16 bits in an integer, and multiplies these integers. And Triton 3.6 makes an
    index of an array with one element, which NumPy 2.5 refuses.
    """
    create_dot: Any = InterpreterBuilder.create_dot
    patch_tensor: Any = interpreter._patch_lang_tensor

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != triton.language.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), triton.language.float32)

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *others)

    def patch(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)  # the scope takes back what it has set, and with it what is set here
        tensor.__index__ = lambda self: int(self.handle.data.item())

    InterpreterBuilder.create_dot = dot
    interpreter._patch_lang_tensor = patch
    try:
        yield
    finally:
        InterpreterBuilder.create_dot = create_dot
        interpreter._patch_lang_tensor = patch_tensor


@contextmanager
def dividing_by_zero() -> Iterator[None]:
    """The interpreter divides with NumPy, which warns; on a GPU the result is inf, and kernels take another number."""
    with np.errstate(divide="ignore"):
        yield
