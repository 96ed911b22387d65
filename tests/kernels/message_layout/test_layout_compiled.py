"""What the compiler makes of the kernel for real GPUs, without one: no spills, and accesses as wide as can be."""

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

# shape, over_heads, over_layers, dtype, out_dtype; the widest load and store to be found, in bits
CASES = [
    ((PROMPT, None, None, "float32", "float32"), 128, 128),
    ((PROMPT, "absmax", None, "float32", "float32"), 128, 128),
    ((PROMPT, "mean", "max", "float32", "float32"), 128, 128),
    ((PROMPT, "absmax", "prod", "bfloat16", "float16"), 64, 64),
    ((PROMPT, None, None, "bfloat16", "float16"), 128, 64),
    # A run of six numbers starts at a multiple of 8 bytes, of five at one of 4: nothing wider can be aligned.
    ((SIX, None, None, "float32", "float32"), 128, 64),
    ((FIVE, None, None, "float32", "float32"), 128, 32),
    # 30 keys: the rows of heads start anywhere. And there is but a number or two for each thread.
    ((STEP, None, None, "float32", "float32"), 32, 32),
    ((STEP, "mean", "max", "float32", "float32"), 32, 32),
]
EVERY_REDUCTION = [((PROMPT, over_heads, None, "float32", "float32"), 128, 128) for over_heads in REDUCTIONS]


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        pytest.param("sm_80", CASES, marks=pytest.mark.slow),
        ("sm_90", CASES),
        pytest.param("sm_100", CASES, marks=pytest.mark.slow),
        ("gfx942", CASES),
        pytest.param("sm_90", EVERY_REDUCTION, marks=pytest.mark.slow),
    ],
    ids=["sm_80", "sm_90", "sm_100", "gfx942", "every reduction"],
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
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for (case, load, store), made in zip(cases, found, strict=True):
        print(target, *case, made)  # pytest shows it with -s, or where the test fails
        assert made["spilled"] == 0, case
        assert made["registers"] <= 128, case
        assert made["load"] >= load, (case, made)
        assert made["store"] >= store, (case, made)
        if case[1] in ("max", "min"):  # the interpreter cannot tell: NumPy's maximum always keeps NaN
            assert case[1] in made["keeps_nan"]
            assert not made["loses_nan"]
