"""Memory between pages that nobody may touch, for what compiled CPU programs read and write.

A compiled program knows addresses, and nothing checks them: what it reads or writes beyond a buffer is somebody else's
memory, most often without a trace. Here each buffer ends at a page, or begins at one, that ends the process when it is
touched; the rest of the buffer's own pages holds a pattern that must be there at the end.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sidelight.kernels.cpu import LinearArgmax, Program, mask_columns, pack_weight, store_rows
from sidelight.server.models.kv_cache import zeros
from torch import Tensor

_PAGE = mmap.PAGESIZE
_NO_ACCESS, _PATTERN = 0, 0xFF  # PROT_NONE; four of the pattern's bytes are NaN
# Modules whose `torch.zeros` and the like make what programs work on.
_MODULES = (
    "kernels.cpu.program",
    "kernels.cpu.operations",
    "kernels.cpu.argmax",
    "kernels.common.attention_tensors",
    "server.runner.model_runner",
    "server.models.bart_cpu_programs",
    "server.models.kv_cache",
)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Pages(mmap.mmap):
    """Pages of one buffer, between two guard pages."""

    faults: list[str]
    unused: list[tuple[int, int]]  # ranges of bytes that hold the pattern

    def is_untouched(self) -> bool:
        """Whether the bytes around the buffer are as they were."""
        return all(self[begin:end] == bytes([_PATTERN]) * (end - begin) for begin, end in self.unused)

    def __del__(self) -> None:
        if not self.is_untouched():
            self.faults.append("written beside a buffer")


class GuardedMemory:
    """Tensors between guard pages, and what was found wrong."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ranges: dict[int, int] = {}  # where buffers are, from their first byte to behind their last
        self._copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}  # of what is only read
        self.faults: list[str] = []

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, align: int = 4, **_: Any) -> Tensor:
        """A tensor whose numbers are the pattern's. One of its ends, at random, is a guard page's."""
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        count = size.numel()
        if not count:
            return torch.empty(size, dtype=dtype)
        length = count * dtype.itemsize
        pages = -(-length // _PAGE) * _PAGE
        memory = _Pages(-1, pages + 2 * _PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        begin = _PAGE
        if self._random.random() < 0.75:  # most faults are beyond the end
            begin += (pages - length) // max(align, dtype.itemsize) * max(align, dtype.itemsize)
        memory.faults, memory.unused = self.faults, [(_PAGE, begin), (begin + length, pages + _PAGE)]
        for first, end in memory.unused:
            memory[first:end] = bytes([_PATTERN]) * (end - first)
        for guard in (address, address + pages + _PAGE):
            if _libc.mprotect(guard, _PAGE, _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        memory[begin : begin + length] = bytes([_PATTERN]) * length
        self._ranges[address + begin] = address + begin + length
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=begin).view(size)

    def copy(self, tensor: Tensor, align: int = 4) -> Tensor:
        """A copy of what is only read, of the same shape and strides; what has been copied before is not again."""
        if tensor.untyped_storage().data_ptr() in self._ranges:
            return tensor
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._copies:
            made = self.empty(tensor.shape, dtype=tensor.dtype, align=align).copy_(tensor)
            if not tensor.is_contiguous():
                raise ValueError(f"a part of a tensor, {tuple(tensor.shape)}, that stands on no guarded memory")
            self._copies[key] = tensor, made
        return self._copies[key][1]

    def check(self) -> list[str]:
        """What was found wrong, copies that have become others than their originals among it."""
        for tensor, made in self._copies.values():
            if not torch.equal(tensor.view(torch.uint8).flatten(), made.view(torch.uint8).flatten()):
                self.faults.append(f"a copy of {tuple(tensor.shape)} has changed, or what it was made of")
        return self.faults


class _Torch:
    """torch, but for the functions that make tensors."""

    def __init__(self, memory: GuardedMemory) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        # These are read by torch as well, whose sums depend on where memory begins: at a line of the cache, as its own.
        return self._memory.empty(*shape, dtype=dtype, align=64)

    def zeros(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        return self._memory.empty(*shape, dtype=dtype).zero_()

    def ones(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        return self._memory.empty(*shape, dtype=dtype).fill_(1)


@contextmanager
def guard_programs(seed: int) -> Iterator[GuardedMemory]:
    """Models loaded and run within have all that their programs read and write between guard pages.

    What stands on other memory and is given to a program is taken for something that is only read, and copied; `check`
    finds what was not.
    """
    from sidelight.kernels.cpu.jit import thread_pool

    memory = GuardedMemory(seed)
    undo: list[Callable[[], None]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def replace_everywhere(function: Any, value: Any) -> None:
        for module in [each for name, each in sys.modules.items() if name.startswith("sidelight.")]:
            for name, each in [*vars(module).items()]:
                if each is function:
                    replace(module, name, value)

    init_argmax, address_of = LinearArgmax.__init__, Program._address
    kept: list[Tensor | None] = []

    def guarded(each: Any) -> Any:
        # Panels are read a vector at a time, and stand at one.
        return memory.copy(each, align=64) if isinstance(each, Tensor) else each

    def store_guarded(probabilities: Tensor, values: Tensor, column: int, rows: Tensor | None, **options: Any) -> Any:
        kept.append(None if rows is None else memory.empty(rows.shape, dtype=rows.dtype).copy_(rows))
        del kept[:-1000]  # those of the last step, at least
        return store_rows(probabilities, values, column, kept[-1], **options)

    def init_guarded(search: Any, weight: Any, bounds: Any = None) -> None:
        init_argmax(
            search,
            weight,
            None
            if bounds is None
            else bounds._replace(
                **{
                    name: memory.copy(getattr(bounds, name))
                    for name in ("weights", "bias", "norms", "errors")
                    if getattr(bounds, name) is not None
                }
            ),
        )

    def address(program: Any, tensor: Tensor | None) -> int:
        return address_of(program, tensor if tensor is None else memory.copy(tensor))

    def lines(size: int) -> tuple[Any, int]:
        made = memory.empty(size, dtype=torch.uint8, align=64).zero_()
        return made, made.data_ptr()

    try:
        for name in _MODULES:
            replace(sys.modules[f"sidelight.{name}"], "torch", _Torch(memory))
        replace_everywhere(pack_weight, lambda *given: type(made := pack_weight(*given))(*map(guarded, made)))
        replace_everywhere(mask_columns, lambda *given: type(made := mask_columns(*given))(*map(guarded, made)))
        replace_everywhere(store_rows, store_guarded)
        replace_everywhere(zeros, lambda shape, dtype, _: memory.empty(shape, dtype=dtype, align=64).zero_())
        replace(LinearArgmax, "__init__", init_guarded)
        replace(Program, "_address", address)
        replace(thread_pool, "_cache_lines", lines)
        replace(thread_pool, "thread_pool", thread_pool.ThreadPool())  # with scratch and shared numbers of its own
        yield memory
    finally:
        while undo:
            undo.pop()()
