"""Counts the bytes that kernels read and write, by running them in Triton's interpreter and watching its accesses.

Knows the interpreter; which kernels run, and how much would be least, whoever calls knows.

Counted is what a program asks global memory for: each lane whose mask is true, at the size of one number. Lanes of one
access that share an address count once, as hardware reads it once for them; two accesses count twice, also where the
second finds the bytes in a cache.
"""
# Triton comes without types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from triton.runtime import interpreter


class Traffic(NamedTuple):
    """Bytes read from and written to global memory."""

    loaded: int
    stored: int


def count(run: Callable[[], object]) -> Traffic:
    """Calls `run`, and counts what the kernels that it launches move. They must be interpreted (TRITON_INTERPRET=1).

    They do what they would do uncounted. Not for threads that run other kernels meanwhile.
    """
    loaded = 0
    stored = 0

    def load(pointers: Any, mask: Any) -> None:
        nonlocal loaded
        loaded += _bytes(pointers, mask)

    def store(pointers: Any, mask: Any) -> None:
        nonlocal stored
        stored += _bytes(pointers, mask)

    with _watched(load, store):
        run()
    return Traffic(loaded, stored)


def _bytes(pointers: Any, mask: Any) -> int:
    """The bytes of one access, a tile of pointers of which a mask, if any, lets some through."""
    addresses = pointers.data
    if mask is not None:
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
    size: int = max(1, pointers.get_element_ty().primitive_bitwidth // 8)  # booleans take a byte
    return np.unique(addresses).size * size


@contextmanager
def _watched(load: Callable[[Any, Any], None], store: Callable[[Any, Any], None]) -> Generator[None, None, None]:
    """Tells of every access. All of the interpreter's go through these four methods, block pointers' too."""
    builder: Any = interpreter.InterpreterBuilder
    names = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
    before = {name: getattr(builder, name) for name in names}

    def masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        load(pointers, mask)
        return before["create_masked_load"](self, pointers, mask, *rest, **named)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        store(pointers, mask)
        return before["create_masked_store"](self, pointers, value, mask, *rest, **named)

    def atomic_rmw(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        load(pointers, mask)
        store(pointers, mask)
        return before["create_atomic_rmw"](self, operation, pointers, value, mask, *rest)

    def atomic_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        load(pointers, None)
        store(pointers, None)
        return before["create_atomic_cas"](self, pointers, *rest)

    try:
        for name, watching in zip(names, (masked_load, masked_store, atomic_rmw, atomic_cas), strict=True):
            setattr(builder, name, watching)
        yield
    finally:
        for name, original in before.items():
            setattr(builder, name, original)
