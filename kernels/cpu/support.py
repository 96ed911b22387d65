"""Whether CPU programs run on this machine.

CPU programs need Linux, an x86-64 processor with AVX2 and FMA, and Numba.
"""

from __future__ import annotations

import logging
import platform
import sys
from functools import cache
from importlib.util import find_spec

log = logging.getLogger(__name__)


@cache
def is_supported(*, int8: bool = False) -> bool:
    """Returns whether CPU programs run here. With `int8`, whether programs with int8 weights run, too.

    The first call compiles the interpreter of programs, or loads it from Numba's cache. Compiling takes some seconds,
    loading takes less.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64" or find_spec("numba") is None:
        return False
    try:
        from .jit import isa

        if isa.IS_SUPPORTED:
            from .jit import thread_pool  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except Exception:  # an installation whose parts do not fit together may raise anything
        log.warning("CPU programs cannot be compiled and are not used", exc_info=True)
        return False
    return isa.IS_SUPPORTED and (isa.HAS_VNNI or not int8)
