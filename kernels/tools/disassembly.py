"""What a kernel has become: figures read from the text of its assembly.

Pure functions from text to figures. Knows what NVIDIA's and AMD's instructions are called; does not compile, and does
not know what figures would be good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class Code(NamedTuple):
    """Figures of one compiled kernel. Instructions are counted where they stand, not as often as they are run."""

    registers: int  # of one thread; on AMD GPUs vector registers, those of accumulators included
    spilled: int  # what one thread keeps in memory for want of registers: bytes of stack, or registers; 0 or a fault
    loads: Mapping[int, int]  # instructions that read global memory, by what one thread reads, in bits
    stores: Mapping[int, int]  # instructions that write it, likewise; atomic ones are not among them
    tensor_cores: Mapping[str, int]  # instructions for tensor cores, by their kind, such as HMMA


# An instruction of SASS: its address as a comment, a predicate perhaps, and a name with modifiers.
_SASS = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)((?:\.\w+)*)", re.MULTILINE)
_SASS_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # without any of these, 32
_SASS_LOADS = ("LDG", "LDGSTS")  # into registers, and past them into shared memory (cp.async)
# TMA copies whole boxes between global and shared memory, whose rows are multiples of 16 bytes.
_TMA_BITS = 128
# HMMA, IMMA, ...: a warp's; HGMMA, QGMMA, ...: a warp group's, Hopper's; UTCHMMA, UTCQMMA, ...: Blackwell's.
_SASS_TENSOR_CORES = re.compile(r"(?:[BDHIOQ]G?|UTC[A-Z]*)MMA")

_AMD = re.compile(r"^\s+(?:global|buffer|flat)_(load|store)_(?:lds_)?(\w+)", re.MULTILINE)
_AMD_TENSOR_CORES = re.compile(r"^\s+v_(mfma|smfmac)_", re.MULTILINE)


def read_nvidia(text: str) -> Code:
    """Figures from what `cuobjdump -sass -res-usage` prints of a cubin."""
    usages = re.findall(r"\bREG:(\d+) STACK:(\d+) .*\bLOCAL:(\d+)", text)
    if not usages:
        raise ValueError("no resource usage in cuobjdump's output")
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    tensor_cores: Counter[str] = Counter()
    for name, modifiers in _SASS.findall(text):
        if name in _SASS_LOADS:
            loads[_sass_bits(modifiers)] += 1
        elif name == "STG":
            stores[_sass_bits(modifiers)] += 1
        elif name == "UTMALDG":
            loads[_TMA_BITS] += 1
        elif name == "UTMASTG":
            stores[_TMA_BITS] += 1
        elif _SASS_TENSOR_CORES.fullmatch(name):
            tensor_cores[name] += 1
    return Code(
        registers=max(int(registers) for registers, _, _ in usages),
        spilled=sum(int(stack) + int(local) for _, stack, local in usages),
        loads=dict(loads),
        stores=dict(stores),
        tensor_cores=dict(tensor_cores),
    )


def _sass_bits(modifiers: str) -> int:
    """The width that modifiers such as `.E.BYPASS.LTC128B.128` say. LTC128B is none: it tells L2 to fetch ahead."""
    return next((_SASS_BITS[each] for each in modifiers.split(".") if each in _SASS_BITS), 32)


def read_amd(text: str) -> Code:
    """Figures from the assembly that Triton keeps as `amdgcn`.

    Scalar loads, `s_load_dwordx8` and the like, are left out: they read the kernel's arguments.
    """
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for verb, what in _AMD.findall(text):
        (loads if verb == "load" else stores)[_amd_bits(what)] += 1
    tensor_cores = Counter(kind.upper() for kind in _AMD_TENSOR_CORES.findall(text))
    return Code(
        registers=_amd_number("vgpr_count", text),
        spilled=sum(
            _amd_number(name, text) for name in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
        ),
        loads=dict(loads),
        stores=dict(stores),
        tensor_cores=dict(tensor_cores),
    )


def _amd_number(name: str, text: str) -> int:
    """An entry of the metadata that the assembly ends with."""
    found = re.search(rf"^\s+\.{name}:\s+(\d+)$", text, re.MULTILINE)
    if not found:
        raise ValueError(f"no {name} in the assembly")
    return int(found[1])


def _amd_bits(what: str) -> int:
    """The width of what is loaded or stored: `dwordx4`, `dword`, `ushort`, `short_d16_hi`, `ubyte`, ..."""
    words = re.fullmatch(r"dword(?:x(\d+))?", what)
    if words:
        return 32 * int(words[1] or 1)
    if "short" in what:
        return 16
    if "byte" in what:
        return 8
    raise ValueError(f"an access of unknown width: {what}")
