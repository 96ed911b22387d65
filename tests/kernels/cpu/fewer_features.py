"""A plugin for pytest: the tests meet a processor with fewer features than this one, as `FEWER_FEATURES` says.

`avx2`: nothing beyond that; `avx512`: no registers for matrices; `refused`: those are there, and the kernel refuses
them.
"""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import llvmlite.binding as llvm

_BEFORE_AVX2 = {"64bit", "avx", "cx16", "cx8", "fxsr", "mmx", "popcnt", "sahf"}
_BEFORE_AVX2 |= {"sse", "sse2", "sse3", "sse4.1", "sse4.2", "ssse3"}
_OF_AVX2 = _BEFORE_AVX2 | {"avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}


class _Features(dict[str, bool]):
    def flatten(self) -> str:
        """As LLVM takes them."""
        return ",".join(("+" if there else "-") + name for name, there in sorted(self.items()))


def _fewer(kind: str) -> None:
    there = dict(llvm.get_host_cpu_features())
    if kind == "refused":
        real = ctypes.CDLL
        ctypes.CDLL = lambda name, *rest, **more: (
            real(name, *rest, **more) if name is not None else SimpleNamespace(syscall=lambda *_: -1)
        )
        return
    kept = {name: is_there and (name in _OF_AVX2 or kind != "avx2") for name, is_there in there.items()}
    features = _Features({name: is_there and not name.startswith("amx") for name, is_there in kept.items()})
    llvm.get_host_cpu_features = lambda: features
    # What Numba compiles for, too: an instruction that is not there ends the process.
    os.environ["NUMBA_CPU_NAME"] = "haswell" if kind == "avx2" else "icelake-server"
    os.environ["NUMBA_CPU_FEATURES"] = features.flatten()


_fewer(os.environ["FEWER_FEATURES"])
