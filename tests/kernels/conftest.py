"""What kernel tests share: kernels that run in Triton's interpreter, and memory that shows what nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton

# @triton.jit decides where it decorates, so the variable must be set while the kernels' modules are first imported, and
# only then: not for servers under test in this process or below it, nor for the tests that compile.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    import triton.experimental.gluon.language  # wants the library as it is, and is imported late
    from sidelight.kernels import decode_triton, layout_triton, rows_triton
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle


@pytest.fixture(scope="session", autouse=True)
def interpreted() -> None:
    """Fails early and clearly where the kernel would ask for a GPU."""
    for kernel in (layout_triton.layout_kernel, rows_triton.rows_kernel, decode_triton.row_kernel):
        assert isinstance(kernel, InterpretedFunction), (
            "the kernels were imported before tests/kernels/conftest.py could have them interpreted"
        )


@pytest.fixture(scope="session", autouse=True)
def standard_library() -> Iterator[None]:
    """Has Triton's own library interpreted too: transformers may have imported Triton long before."""
    standard = triton.language.standard
    with pytest.MonkeyPatch.context() as patch:
        for name, function in list(vars(standard).items()):
            if isinstance(function, JITFunction):
                interpreted = InterpretedFunction(function.fn)
                for module in (standard, triton.language):
                    if getattr(module, name, None) is function:
                        patch.setattr(module, name, interpreted)
        yield


@pytest.fixture(scope="session", autouse=True)
def multiplying_bfloat16() -> Iterator[None]:
    """Mends the interpreter's matrix product: it holds bfloat16 as 16 bits in an integer, and multiplies those."""
    create_dot = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != triton.language.bfloat16:
            return handle
        bits = handle.data.view(np.uint16).astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), triton.language.float32)

    def mended(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return create_dot(self, widened(a), widened(b), *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", mended)
        yield


@pytest.fixture(autouse=True)
def divisions_by_zero() -> Iterator[None]:
    """The interpreter makes them with NumPy, which warns; on a GPU they are inf, and kernels take another number."""
    with np.errstate(divide="ignore"):
        yield


@pytest.fixture(scope="session", autouse=True)
def poisoned() -> Iterator[None]:
    """Fills what torch.empty gives with NaN, so that an element left unwritten is seen."""

    def empty(*shape: int, **options: object) -> torch.Tensor:
        made = original(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    original = torch.empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", empty)
        yield


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def restored() -> Iterator[None]:
    """Leaves torch as many threads as it had."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
