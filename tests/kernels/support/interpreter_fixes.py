"""What Triton's interpreter gets wrong, warns of or takes long for, mended as long as a test or a dry run needs it.

For processes whose kernels are interpreted already: whether they are is decided where they are decorated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import triton
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


@contextmanager
def fixed_interpreter() -> Iterator[None]:
    """Mends the interpreter's matrix product and its indices, and makes it some times as fast."""
    builder = interpreter.interpreter_builder
    # It looks for overflows, and says nothing when it finds one: its assertions are off without `debug`.
    unchecked = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    fixes = (
        patch.object(builder, "options", unchecked),
        patch.object(InterpreterBuilder, "create_dot", _widening(InterpreterBuilder.create_dot)),
        patch.object(interpreter, "_patch_lang_tensor", _setting_index(interpreter._patch_lang_tensor)),
        patch.object(interpreter, "_patch_lang", _patching_once(interpreter._patch_lang)),
        patch.object(interpreter, "_get_np_dtype", _remembering(interpreter._get_np_dtype)),
        patch.object(interpreter.ReduceOps, "generic_reduce", _reduce_slices),
    )
    with ExitStack() as stack:
        for fix in fixes:
            stack.enter_context(fix)
        yield


def _widening(create_dot: Any) -> Any:
    """The matrix product for bfloat16 too. The interpreter holds it as 16 bits in an integer, and multiplies these."""

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != triton.language.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), triton.language.float32)

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *others)

    return dot


def _setting_index(patch_tensor: Any) -> Any:
    """Triton 3.6 makes an index of an array with one element, which NumPy 2.5 refuses."""

    def patch(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)  # the scope takes back what it has set, and with it what is set here
        tensor.__index__ = lambda self: int(self.handle.data.item())

    return patch


def _patching_once(patch_language: Any) -> Any:
    """The interpreter patches Triton's language at each call of each device function; here once a launch."""
    patched: set[str] = set()

    def patch(function: Any) -> Any:
        modules = {
            value.__name__
            for value in function.__globals__.values()
            if value is triton.language or value is triton.language.core
        }
        is_launch = not patched
        if not is_launch and modules <= patched:
            return None  # of a device function, whose scope is not used
        patched.update(modules)
        scope = patch_language(function)
        if is_launch:
            restore = scope.restore

            def restore_and_forget() -> None:
                patched.clear()
                restore()

            scope.restore = restore_and_forget
        return scope

    return patch


def _remembering(numpy_dtype: Any) -> Any:
    """NumPy's type for one of Triton's: the interpreter makes a table of all types at each question."""
    known = functools.cache(numpy_dtype)

    def numpy_dtype_of(dtype: Any) -> np.dtype[Any]:
        scalar = dtype.element_ty if isinstance(dtype, triton.language.block_type) else dtype
        return numpy_dtype(scalar) if isinstance(scalar, triton.language.pointer_type) else known(scalar)

    return numpy_dtype_of


def _reduce_slices(reduction: Any, tensors: Any) -> list[Any]:
    """In place of `ReduceOps.generic_reduce`: combines whole slices, where the interpreter combines number by number.

    The order along the axis is the same, and so are all types: test_interpreter_fixes.py compares the two.
    """
    tensors, axis = reduction.unravel(tensors, reduction.axis)
    shape = tensors[0].handle.data.shape
    rest = shape[:axis] + shape[axis + 1 :]

    def slices(place: int) -> list[Any]:
        return [reduction.to_tensor(np.take(each.handle.data, place, axis), each.dtype) for each in tensors]

    reduced = slices(0)
    for place in range(1, shape[axis]):
        combined = reduction.combine_fn.fn(*reduced, *slices(place))
        parts = combined if isinstance(combined, tuple) else (combined,)
        reduced = [
            reduction.to_tensor(part.handle.data.reshape(rest), each.dtype)
            for part, each in zip(parts, tensors, strict=True)
        ]
    if not reduction.keep_dims:
        return reduced
    kept = (1,) * len(shape) if reduction.axis is None else (*shape[:axis], 1, *shape[axis + 1 :])
    return [
        reduction.to_tensor(part.handle.data.reshape(kept), each.dtype)
        for part, each in zip(reduced, tensors, strict=True)
    ]


@contextmanager
def dividing_by_zero() -> Iterator[None]:
    """The interpreter divides with NumPy, which warns; on a GPU the result is inf, and kernels take another number."""
    with np.errstate(divide="ignore"):
        yield
