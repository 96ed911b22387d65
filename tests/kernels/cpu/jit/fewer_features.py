"""A plugin for pytest: the processor seems to have fewer instructions than it has, as `FEWER_FEATURES` says.

`avx2`: nothing beyond AVX2; `avx512`: no AMX; `refused`: AMX is there, and the operating system refuses it.
"""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace

import llvmlite.binding as llvm

_BEFORE_AVX2 = {"64bit", "avx", "cx16", "cx8", "fxsr", "mmx", "popcnt", "sahf"}
_BEFORE_AVX2 |= {"sse", "sse2", "sse3", "sse4.1", "sse4.2", "ssse3"}
_UP_TO_AVX2 = _BEFORE_AVX2 | {"avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"}


class _Features(dict[str, bool]):
    def flatten(self) -> str:
        """The features in LLVM's notation."""
        return ",".join(("+" if has else "-") + name for name, has in sorted(self.items()))


def _remove_features(kind: str) -> None:
    features = dict(llvm.get_host_cpu_features())
    if kind == "refused":
        real = ctypes.CDLL
        ctypes.CDLL = lambda name, *rest, **more: (
            real(name, *rest, **more) if name is not None else SimpleNamespace(syscall=lambda *_: -1)
        )
        return
    fewer = _Features(
        {
            name: has and (name in _UP_TO_AVX2 or kind != "avx2") and not name.startswith("amx")
            for name, has in features.items()
        }
    )
    llvm.get_host_cpu_features = lambda: fewer
    # Numba compiles for these, too: an instruction that does not exist would end the process.
    os.environ["NUMBA_CPU_NAME"] = "haswell" if kind == "avx2" else "icelake-server"
    os.environ["NUMBA_CPU_FEATURES"] = fewer.flatten()


_remove_features(os.environ["FEWER_FEATURES"])
