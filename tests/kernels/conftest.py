"""What kernel tests share: kernels that run in Triton's interpreter, and memory that shows what nobody wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

# @triton.jit decides where it decorates, so the variable must be set while the kernel's module is first imported, and
# only then: not for servers under test in this process or below it, nor for the tests that compile. That Triton itself
# may have been imported long before (transformers does it) is of no consequence.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    from sidelight.kernels import layout_triton
    from triton.runtime.interpreter import InterpretedFunction


@pytest.fixture(scope="session", autouse=True)
def interpreted() -> None:
    """Fails early and clearly where the kernel would ask for a GPU."""
    assert isinstance(layout_triton.layout_kernel, InterpretedFunction), (
        "sidelight.kernels.layout_triton was imported before tests/kernels/conftest.py could have it interpreted"
    )


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
