"""`layout_kernel`, compiled for GPUs that need not be there: no spills, and memory accesses as wide as possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sidelight.kernels import REDUCTIONS

PROMPT = [4, 8, 512, 512, 8]  # B, H, Q, K, L: everything aligned, tiles at their largest
SIX = [4, 6, 512, 512, 6]
FIVE = [4, 5, 512, 512, 5]
STEP = [1, 8, 1, 30, 6]

# shape, over_heads, over_layers, dtype, out_dtype; the widest load and store, in bits
CASES = [
    ((PROMPT, None, None, "float32", "float32"), 128, 128),
    ((PROMPT, "absmax", None, "float32", "float32"), 128, 128),
    ((PROMPT, "mean", "max", "float32", "float32"), 128, 128),
    ((PROMPT, "absmax", "prod", "bfloat16", "float16"), 64, 64),
    ((PROMPT, None, None, "bfloat16", "float16"), 128, 64),
    # A run of six numbers starts at a multiple of 8 bytes, of five at one of 4: nothing wider can be aligned.
    ((SIX, None, None, "float32", "float32"), 128, 64),
    ((FIVE, None, None, "float32", "float32"), 128, 32),
    # 30 keys: the rows of heads start at any offset. And each thread has only a number or two.
    ((STEP, None, None, "float32", "float32"), 32, 32),
    ((STEP, "mean", "max", "float32", "float32"), 32, 32),
]
EVERY_REDUCTION = [((PROMPT, over_heads, None, "float32", "float32"), 128, 128) for over_heads in REDUCTIONS]


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        pytest.param("sm_80", CASES, marks=pytest.mark.slow),
        ("sm_90", CASES[:3]),
        pytest.param("sm_90", CASES[3:], marks=pytest.mark.slow),
        pytest.param("sm_100", CASES, marks=pytest.mark.slow),
        pytest.param("gfx942", CASES, marks=pytest.mark.slow),
        pytest.param("sm_90", EVERY_REDUCTION, marks=pytest.mark.slow),
    ],
    ids=["sm_80", "sm_90", "sm_90 small", "sm_100", "gfx942", "every reduction"],
)
def test_compiles_without_spills_and_wide(target: str, cases: list[Any], tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_layout.py"
    done = subprocess.run(
        [sys.executable, script, json.dumps([(target, *case) for case, _, _ in cases])],
        cwd=tmp_path,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for (case, load, store), result in zip(cases, results, strict=True):
        print(target, *case, result)  # for pytest -s, and for failures
        assert result["spilled"] == 0, case
        assert result["registers"] <= 128, case
        assert result["load"] >= load, (case, result)
        assert result["store"] >= store, (case, result)
        if case[1] in ("max", "min"):  # not tested in the interpreter: NumPy's maximum always keeps NaN
            assert case[1] in result["keeps_nan"]
            assert not result["loses_nan"]
