"""Figures of compiled kernels, read from the text of their assembly: registers, spills, widths of memory accesses.

Functions take text and return figures. They know the names of NVIDIA's and AMD's instructions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class Code(NamedTuple):
    """Figures of one compiled kernel. Instructions are counted once, however often they run."""

    registers: int  # of one thread; on AMD GPUs vector registers, with those of accumulators
    spilled: (
        int  # what one thread keeps in memory because registers are full: bytes of stack, or registers; should be 0
    )
    loads: Mapping[int, int]  # instructions that read global memory, by the bits that one thread reads
    stores: Mapping[int, int]  # instructions that write global memory, likewise; without atomic ones
    tensor_cores: Mapping[str, int]  # instructions for tensor cores, by kind, such as HMMA


# An instruction of SASS: its address as a comment, an optional predicate, and a name with modifiers.
_SASS = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)((?:\.\w+)*)", re.MULTILINE)
_SASS_BITS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # 32 without any of these
_SASS_LOADS = ("LDG", "LDGSTS")  # into registers, and directly into shared memory (cp.async)
# TMA copies boxes between global and shared memory. The rows of a box are multiples of 16 bytes.
_TMA_BITS = 128
# HMMA, IMMA, ...: a warp's; HGMMA, QGMMA, ...: a warp group's, Hopper's; UTCHMMA, UTCQMMA, ...: Blackwell's.
_SASS_TENSOR_CORES = re.compile(r"(?:[BDHIOQ]G?|UTC[A-Z]*)MMA")

_AMD = re.compile(r"^\s+(?:global|buffer|flat)_(load|store)_(?:lds_)?(\w+)", re.MULTILINE)
_AMD_TENSOR_CORES = re.compile(r"^\s+v_(mfma|smfmac)_", re.MULTILINE)


def read_nvidia(text: str) -> Code:
    """Returns the figures of a cubin, from the output of `cuobjdump -sass -res-usage`."""
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
    """The width in modifiers such as `.E.BYPASS.LTC128B.128`. LTC128B is no width: it tells L2 to prefetch."""
    return next((_SASS_BITS[part] for part in modifiers.split(".") if part in _SASS_BITS), 32)


def read_amd(text: str) -> Code:
    """Returns the figures of AMD assembly, which Triton keeps as `amdgcn`.

    Scalar loads such as `s_load_dwordx8` are left out: they read the kernel's arguments.
    """
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for verb, suffix in _AMD.findall(text):
        (loads if verb == "load" else stores)[_amd_bits(suffix)] += 1
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
    """An entry of the metadata at the end of the assembly."""
    match = re.search(rf"^\s+\.{name}:\s+(\d+)$", text, re.MULTILINE)
    if not match:
        raise ValueError(f"no {name} in the assembly")
    return int(match[1])


def _amd_bits(suffix: str) -> int:
    """The bits of a load or store with a suffix: `dwordx4`, `dword`, `ushort`, `short_d16_hi`, `ubyte`, ..."""
    words = re.fullmatch(r"dword(?:x(\d+))?", suffix)
    if words:
        return 32 * int(words[1] or 1)
    if "short" in suffix:
        return 16
    if "byte" in suffix:
        return 8
    raise ValueError(f"an access of unknown width: {suffix}")
