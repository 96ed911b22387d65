"""Counts the bytes that kernels read and write: runs them in Triton's interpreter and counts its memory accesses.

Each lane of an access whose mask is true counts with the size of one number. Lanes of one access that share an address
count once, since hardware reads the address once for them. Two accesses count twice, also where the second finds the
bytes in a cache.
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
    """Calls `run`, and counts what the kernels that it launches read and write.

    Kernels must be interpreted (TRITON_INTERPRET=1). Counting does not change what they do. No other thread may run
    kernels meanwhile.
    """
    loaded = 0
    stored = 0

    def load(pointers: Any, mask: Any) -> None:
        nonlocal loaded
        loaded += _bytes(pointers, mask)

    def store(pointers: Any, mask: Any) -> None:
        nonlocal stored
        stored += _bytes(pointers, mask)

    with _on_access(load, store):
        run()
    return Traffic(loaded, stored)


def _bytes(pointers: Any, mask: Any) -> int:
    """The bytes of one access: a tile of pointers, and a mask or None."""
    addresses = pointers.data
    if mask is not None:
        addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
    size: int = max(1, pointers.get_element_ty().primitive_bitwidth // 8)  # booleans take a byte
    return np.unique(addresses).size * size


@contextmanager
def _on_access(load: Callable[[Any, Any], None], store: Callable[[Any, Any], None]) -> Generator[None, None, None]:
    """Calls functions at every access. All accesses of the interpreter use these four methods, block pointers too."""
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
        for name, method in zip(names, (masked_load, masked_store, atomic_rmw, atomic_cas), strict=True):
            setattr(builder, name, method)
        yield
    finally:
        for name, original in before.items():
            setattr(builder, name, original)
