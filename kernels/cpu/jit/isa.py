"""Which vector instructions the processor has, the sizes that follow from them, and how functions are compiled.

Sizes are decided once, when this module is imported: the numbers of a vector, the columns of a panel, the rows of a
tile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
from numba import njit

# NumPy's error model: without Python's errors, such as for a division by 0, which keep loops from becoming vectors.
_OPTIONS: Any = {"error_model": "numpy"}
compiled: Any = njit(**_OPTIONS)
# Additions may also change their order, so that loops become vectors: the same order for all rows. NaN and infinity
# keep their meaning.
vectorized: Any = njit(**_OPTIONS, fastmath={"reassoc", "contract", "nsz", "arcp"})

_FEATURES: dict[str, bool] = dict(llvm.get_host_cpu_features())
_HAS_AVX512 = _FEATURES.get("avx512f", False) and _FEATURES.get("avx512vl", False)

# Numbers of 32 bits in a vector, and vectors in a row of a tile.
LANES = 16 if _HAS_AVX512 else 8
VECTORS = 4 if _HAS_AVX512 else 2
# Columns of a panel of weights: those of one tile.
PANEL_WIDTH = LANES * VECTORS
# The most rows of a tile: all sums stay in registers, and some registers are left for weights.
TILE_ROWS = 6
# Whether one instruction multiplies four pairs of bytes and adds the products exactly in 32 bits.
HAS_VNNI = (_FEATURES.get("avx512vnni", False) and _HAS_AVX512) or (not _HAS_AVX512 and _FEATURES.get("avxvnni", False))
IS_SUPPORTED = _FEATURES.get("avx2", False) and _FEATURES.get("fma", False)


def _request_amx() -> bool:
    """Requests the tile registers of AMX from the operating system, for all threads of this process."""
    if not (_HAS_AVX512 and HAS_VNNI and _FEATURES.get("amx-tile", False) and _FEATURES.get("amx-int8", False)):
        return False
    # Linux, Documentation/arch/x86/xstate.rst: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


# Whether there are registers for 16 rows of 64 bytes, and instructions that multiply two of them.
HAS_AMX = _request_amx()
