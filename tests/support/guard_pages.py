"""Memory between guard pages, for the buffers that compiled CPU programs read and write.

A compiled program knows addresses, and nothing checks the addresses: an access beyond a buffer goes to other memory,
most often without a trace. Here each buffer ends or begins at a guard page, and an access to a guard page ends the
process. The rest of the buffer's own pages holds a pattern, which must be there at the end.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from sidelight.kernels.cpu import LinearArgmax, Program, mask_columns, pack_weight, store_rows, sum_heads
from sidelight.kernels.cpu.jit.opcodes import KIND
from sidelight.kernels.cpu.operations import Fields
from sidelight.server.models.kv_cache import zeros
from torch import Tensor

_PAGE = mmap.PAGESIZE
_NO_ACCESS, _PATTERN = 0, 0xFF  # PROT_NONE; four bytes of the pattern are NaN as a float32
# Modules that allocate the memory of programs by `torch.zeros`, `torch.ones` and `torch.empty`.
_MODULES = (
    "kernels.cpu.program",
    "kernels.cpu.operations",
    "kernels.cpu.argmax",
    "kernels.cpu.decode_step",
    "kernels.common.attention_tensors",
    "server.runner.model_runner",
    "server.models.bart_cpu_layers",
    "server.models.bart_cpu_programs",
    "server.models.kv_cache",
)
_FILLING = ("randn", "rand", "randint", "full", "tensor")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Pages(mmap.mmap):
    """Pages of one buffer, between two guard pages."""

    faults: list[str]
    unused: list[tuple[int, int]]  # ranges of bytes that hold the pattern

    def is_untouched(self) -> bool:
        """Whether the bytes around the buffer still hold the pattern."""
        return all(self[begin:end] == bytes([_PATTERN]) * (end - begin) for begin, end in self.unused)

    def __del__(self) -> None:
        if not self.is_untouched():
            self.faults.append("written beside a buffer")


class GuardedMemory:
    """Tensors between guard pages, and the faults that were found."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._ranges: dict[int, int] = {}  # address of a buffer → address behind it
        # Tensors that programs only read, and their copies.
        self._copies: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        self.faults: list[str] = []
        self.kinds: set[int] = set()  # of the operations that were run

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, align: int = 4, **_: Any) -> Tensor:
        """Makes a tensor filled with the pattern. A guard page is at its begin or at its end, at random."""
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        count = size.numel()
        if not count:
            return torch.empty(size, dtype=dtype)
        length = count * dtype.itemsize
        pages = -(-length // _PAGE) * _PAGE
        memory = _Pages(-1, pages + 2 * _PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        begin = _PAGE
        if self._random.random() < 0.75:  # at the end: most faults are beyond the end
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
        """Copies a tensor that programs only read. The same tensor is copied once."""
        if tensor.untyped_storage().data_ptr() in self._ranges:
            return tensor
        key = tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
        if key not in self._copies:
            copy = self.empty(tensor.shape, dtype=tensor.dtype, align=align).copy_(tensor)
            if not tensor.is_contiguous():
                raise ValueError(f"a part of a tensor, {tuple(tensor.shape)}, is not in guarded memory")
            self._copies[key] = tensor, copy
        return self._copies[key][1]

    def check(self) -> list[str]:
        """Returns the faults that were found. A copy that differs from its original is a fault."""
        for tensor, copy in self._copies.values():
            # A copy once more, since an axis of length 1 may have any stride, and no view of bytes then.
            whole, same = (
                each.clone(memory_format=torch.contiguous_format).view(torch.uint8) for each in (tensor, copy)
            )
            if not torch.equal(whole, same):
                self.faults.append(f"a copy of {tuple(tensor.shape)} has changed, or its original")
        return self.faults


class _Torch:
    """torch, with other functions that make tensors.

    With `guards_all`, the functions that fill tensors as tests do are among them.
    """

    def __init__(self, memory: GuardedMemory, *, guards_all: bool = False) -> None:
        self._memory = memory
        self._filling = _FILLING if guards_all else ()

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name)
        if name not in self._filling:
            return function

        def fill(*arguments: Any, **options: Any) -> Tensor:
            filled = function(*arguments, **options)
            return self._memory.empty(filled.shape, dtype=filled.dtype).copy_(filled)

        return fill

    def empty(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        # torch reads these tensors too, and its sums depend on the alignment of memory. Like torch's own memory, this
        # memory begins at a cache line.
        return self._memory.empty(*shape, dtype=dtype, align=64)

    def zeros(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        return self._memory.empty(*shape, dtype=dtype).zero_()

    def ones(self, *shape: Any, dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
        return self._memory.empty(*shape, dtype=dtype).fill_(1)


class _Replacements:
    """Attributes of modules and classes that have other values for a time."""

    def __init__(self, further_modules: Sequence[ModuleType]) -> None:
        self._further_modules = further_modules
        self._undo: list[Callable[[], None]] = []

    def replace(self, owner: Any, name: str, value: Any) -> None:
        before = getattr(owner, name)
        self._undo.append(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def replace_everywhere(self, function: Any, value: Any) -> None:
        """Replaces a function in every module of Sidelight that has imported it, and in further modules."""
        ours = [module for name, module in sys.modules.items() if name.startswith("sidelight.")]
        for module in [*ours, *self._further_modules]:
            for name in [name for name, attribute in vars(module).items() if attribute is function]:
                self.replace(module, name, value)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()


@contextmanager
def guard_programs(seed: int, *test_modules: ModuleType) -> Iterator[GuardedMemory]:
    """Places all memory that programs read and write between guard pages, for models that are loaded and run inside.

    In test modules, all tensors lie between guard pages that torch's functions make, except of those made of others.
    Memory that a program gets from elsewhere is taken for memory that programs only read, and is copied. `check` finds
    memory for which this is wrong.
    """
    # Imported here: tests import this file on machines without Numba, too.
    from sidelight.kernels.cpu.jit import thread_pool

    memory, replacements = GuardedMemory(seed), _Replacements(test_modules)
    try:
        for module in test_modules:
            if hasattr(module, "torch"):
                replacements.replace(module, "torch", _Torch(memory, guards_all=True))
        for name in _MODULES:
            replacements.replace(sys.modules[f"sidelight.{name}"], "torch", _Torch(memory))
        replacements.replace_everywhere(
            zeros, lambda shape, dtype, _: memory.empty(shape, dtype=dtype, align=64).zero_()
        )
        _guard_weights(memory, replacements)
        _guard_operands(memory, replacements)
        _guard_threads(thread_pool, memory, replacements)
        yield memory
    finally:
        replacements.undo()


def _guard_weights(memory: GuardedMemory, replacements: _Replacements) -> None:
    """Copies packed weights, masked columns, and the bounds of an argmax."""
    init_argmax = LinearArgmax.__init__

    def guard_fields(value: Any) -> Any:
        # Programs read panels a vector at a time. A panel begins at a whole vector.
        copies = (memory.copy(field, align=64) if isinstance(field, Tensor) else field for field in value)
        return type(value)(*copies)

    def init_guarded(search: Any, weight: Any, bounds: Any = None) -> None:
        if bounds is not None:
            tensors = {name: getattr(bounds, name) for name in ("weights", "bias", "norms", "errors")}
            copies = {name: memory.copy(tensor) for name, tensor in tensors.items() if tensor is not None}
            bounds = bounds._replace(**copies)
        init_argmax(search, weight, bounds)

    replacements.replace_everywhere(pack_weight, lambda *arguments: guard_fields(pack_weight(*arguments)))
    replacements.replace_everywhere(mask_columns, lambda *arguments: guard_fields(mask_columns(*arguments)))
    replacements.replace(LinearArgmax, "__init__", init_guarded)


def _guard_operands(memory: GuardedMemory, replacements: _Replacements) -> None:
    """Copies the tensors whose addresses are written into a program, and the row numbers of stored rows."""
    address_of = Program._address
    row_copies: list[Tensor | None] = []

    def address(program: Any, tensor: Tensor | None) -> int:
        return address_of(program, tensor if tensor is None else memory.copy(tensor))

    def guard_rows(function: Callable[..., Any]) -> Callable[..., Any]:
        def store_guarded(
            probabilities: Tensor, values: Tensor, column: int, rows: Tensor | None, *args: Any, **options: Any
        ) -> Any:
            row_copies.append(None if rows is None else memory.empty(rows.shape, dtype=rows.dtype).copy_(rows))
            del row_copies[:-1000]  # keeps at least the copies of the last step
            return function(probabilities, values, column, row_copies[-1], *args, **options)

        return store_guarded

    replacements.replace(Program, "_address", address)
    for function in (store_rows, sum_heads):
        replacements.replace_everywhere(function, guard_rows(function))


def _guard_threads(thread_pool: ModuleType, memory: GuardedMemory, replacements: _Replacements) -> None:
    """Makes a thread pool whose scratch and shared numbers are guarded."""

    def cache_lines(size: int) -> tuple[Any, int]:
        lines = memory.empty(size, dtype=torch.uint8, align=64).zero_()
        return lines, lines.data_ptr()

    replacements.replace(thread_pool, "_cache_lines", cache_lines)
    pool = thread_pool.ThreadPool()
    run_pool = pool.run

    def run(operations: Fields, run_fields: Fields, num_threads: int) -> None:
        memory.kinds.update(operations[:, KIND].tolist())
        guarded = []
        for fields in (operations, run_fields):
            place = memory.empty(fields.shape, dtype=torch.int64).numpy()
            place[:] = fields
            guarded.append(place)
        run_pool(*guarded, num_threads)

    pool.run = run
    replacements.replace(thread_pool, "thread_pool", pool)
