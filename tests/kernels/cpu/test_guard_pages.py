"""Each kind of operation of CPU programs reads and writes within its buffers alone, at sizes around all boundaries.

The tests of operations run once more, with guard pages before or behind each buffer. `tests/support/guard_pages.py`
says how; `tests/server/models/test_odd_sizes.py` does the same for whole models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sidelight.kernels.cpu import is_supported
from sidelight.kernels.cpu.jit import opcodes

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
NUM_KINDS = opcodes.FIND_ARGMAX + 1
# Left out: what looks at the memory itself, what writes into copies of guarded tensors, and what takes long without
# other buffers.
LEFT_OUT = "more_threads or too_little_memory or anything or same_time or neighbours or position_major"
ARGMAX = pytest.param("argmax", marks=pytest.mark.skipif(not is_supported(int8=True), reason="no int8"))


@pytest.mark.slow
@pytest.mark.skipif(not is_supported(), reason="no programs on this machine")
@pytest.mark.parametrize("name", ["program", "attention", ARGMAX, "decode_step"])
def test_operations_stay_within_their_buffers(name):
    """In a process of its own, since a guard page ends it."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "guarded_tests", "-p", "no:cacheprovider", "-n", "0"]
    support = [ROOT / "tests" / "kernels" / "support", ROOT / "tests" / "support"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, support)), "OMP_NUM_THREADS": "1"}
    command += ["-k", f"not ({LEFT_OUT})", f"--rootdir={ROOT}", f"--config-file={ROOT / 'pyproject.toml'}"]
    done = subprocess.run(
        [*command, str(HERE / f"test_{name}.py")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    kinds = set(done.stdout.rpartition("operations between guard pages:")[2].split())
    assert kinds >= KINDS[name], kinds


def _names(*kinds: int) -> set[str]:
    return {str(kind) for kind in kinds}


KINDS = {
    "program": _names(opcodes.MATMUL, opcodes.LAYER_NORM, opcodes.EMBED)
    | (_names(opcodes.QUANTIZE) if is_supported(int8=True) else set()),
    "attention": _names(
        opcodes.ATTEND, opcodes.ATTEND_SEQUENCES, opcodes.SCATTER_KV, opcodes.STORE_ROWS, opcodes.SUM_HEADS
    ),
    "argmax": _names(opcodes.FIND_MAXIMA, opcodes.FIND_ARGMAX),
    "decode_step": _names(opcodes.ATTEND),
}


def test_each_kind_of_operation_is_among_them():
    assert set().union(*KINDS.values()) | _names(opcodes.QUANTIZE) == _names(*range(NUM_KINDS))
