"""A plugin for pytest: the buffers of CPU programs that tests make and run lie between guard pages.

At the end of the tests it prints the kinds of operations that were run.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator

import pytest
from guard_pages import guard_programs

_kinds: set[int] = set()


@pytest.fixture(autouse=True)
def guarded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Guards the buffers of one test. The test's name chooses which buffers end at a guard page, and which begin."""
    modules = [request.module, *(sys.modules[name] for name in ("linear_layers",) if name in sys.modules)]
    with guard_programs(zlib.crc32(request.node.name.encode()), *modules) as memory:
        yield
        _kinds.update(memory.kinds)
        assert not memory.check(), memory.faults


def pytest_unconfigure() -> None:
    """Prints the kinds of operations."""
    print("operations between guard pages:", *sorted(_kinds))
