"""Programs on processors with fewer instructions than this one: they compile, and their results are right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest
from sidelight.kernels.cpu import is_supported

pytestmark = pytest.mark.skipif(not is_supported(), reason="no programs on this machine")

HERE = Path(__file__).parent
FILES = [
    *(HERE.parent / f"test_{name}.py" for name in ("program", "attention", "argmax")),
    HERE / "test_thread_pool.py",
]
FEATURES = dict(llvm.get_host_cpu_features())
# Tests that read all kinds of weights, with one thread and with several.
TESTS = "test_matmul or test_attention or test_finds_the_greatest or test_more_threads or test_a_row_is_the_same"


@pytest.mark.slow  # programs are compiled anew for each kind
@pytest.mark.parametrize(
    ("kind", "needs"), [("avx2", "avx2"), ("avx512", "avx512vnni"), ("refused", "amx-int8")], ids=str
)
def test_fewer_features(kind, needs, tmp_path):
    if not FEATURES.get(needs, False):
        pytest.skip(f"this processor has no {needs}")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "fewer_features", "-p", "no:cacheprovider", "-n", "0"]
    environment = {**os.environ, "FEWER_FEATURES": kind, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "-k", TESTS, *map(str, FILES)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
