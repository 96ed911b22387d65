"""What kernel tests share: kernels that run in Triton's interpreter, and memory that shows what nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton

# @triton.jit decides where it decorates, so the variable must be set while the kernels' modules are first imported, and
# only then: not for servers under test in this process or below it, nor for the tests that compile.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    import interpreter_fixes
    import triton.experimental.gluon.language  # wants the library as it is, and is imported late
    from sidelight.kernels.attention_rows import triton_kernel as rows_triton
    from sidelight.kernels.decode_attention import triton_kernel as decode_triton
    from sidelight.kernels.message_layout import triton_kernel as layout_triton
    from triton.runtime import JITFunction
    from triton.runtime.interpreter import InterpretedFunction


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
def fixed_interpreter() -> Iterator[None]:
    with interpreter_fixes.fixed_interpreter():
        yield


@pytest.fixture(autouse=True)
def dividing_by_zero() -> Iterator[None]:
    with interpreter_fixes.dividing_by_zero():
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
