"""Plants faults in a copy of the kernels, one after another, and says which test catches each. Run by hand: minutes.

    python tests/kernels/mutants.py

Ends with 1 if a fault is not caught, or if its place is no longer there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = {"kernels": "kernels", "server": "server", "client": "client", "v1": "proto/sidelight/v1"}


class Mutant(NamedTuple):
    fault: str
    file: str
    before: str
    after: str


MUTANTS = [
    Mutant("rows: wrong stride", "attention_rows/triton_kernel.py", "k[:, None] * key.t", "k[:, None] * key.h"),
    Mutant(
        "decode: wrong stride",
        "decode_attention/triton_kernel.py",
        "values + k64[:, None] * value.t",
        "values + k64[:, None] * key.h",
    ),
    Mutant(
        "mean for sum over heads",
        "common/triton_reduce.py",
        'if REDUCTION == "mean":',
        'if REDUCTION == "mean" or REDUCTION == "sum":',
    ),
    Mutant(
        "rows: wrong key head of a group",
        "attention_rows/triton_kernel.py",
        "h // sizes.groups",
        "h % (sizes.heads // sizes.groups)",
    ),
    Mutant("rows: causal mask missing", "common/triton_scores.py", "inside & (k <= rule.first + t)", "inside"),
    Mutant("decode: lengths missing", "decode_attention/triton_kernel.py", "tl.load(span.lengths + b)", "sizes.keys"),
    Mutant(
        "rows: denominator of the row before",
        "attention_rows/triton_kernel.py",
        "row = denominator + ((b * sizes.heads + h) * sizes.queries + t)",
        "row = denominator + ((b * sizes.heads + h) * sizes.queries + tl.maximum(t - 1, 0))",
    ),
    Mutant(
        "decode: scores of the wrong head",
        "decode_attention/triton_kernel.py",
        "scores + (b * sizes.heads + h)",
        "scores + (b + h)",
    ),
    Mutant(
        "rows: float16 accumulation",
        "attention_rows/triton_kernel.py",
        "PRECISION)\n    return scored(",
        "PRECISION)\n    scores = scores.to(tl.float16).to(tl.float32)\n    return scored(",
    ),
    Mutant(
        "decode: float16 accumulation",
        "decode_attention/triton_kernel.py",
        "        greatest = now\n\n",
        "        greatest = now\n        mixed = mixed.to(tl.float16).to(tl.float32)\n\n",
    ),
    Mutant(
        "rows: tiles of two sizes",
        "attention_rows/triton_kernel.py",
        '{**common, "out": denominator}',
        '{**common, "out": denominator, "BLOCK_T": 64}',
    ),
    Mutant(
        "a weight taken for a head",
        "common/triton_output.py",
        "constant(part.weights, torch.float32",
        "constant(part.weights, torch.int32",
    ),
    Mutant("columns not looked at", "common/triton_output.py", " or part.columns is not None", ""),
    Mutant(
        "decode: not a number hidden by other shares",
        "decode_attention/triton_kernel.py",
        "tl.where(reciprocal != 0.0",
        "tl.where(reciprocal > 0.0",
    ),
    Mutant(
        "a slice of queries begins at the first",
        "common/attention_params.py",
        "first=self.first + queries.start",
        "first=self.first",
    ),
    Mutant(
        "reference: window too wide",
        "common/attention_reference.py",
        "keys > last - scoring.window",
        "keys >= last - scoring.window",
    ),
]


def caught(mutant: Mutant) -> str:
    """The first test that fails; nothing if none does, or if there is no such place."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "sidelight")
        package.mkdir()
        for name, path in PACKAGES.items():
            if name != "kernels":
                (package / name).symlink_to(ROOT / path)
        shutil.copytree(ROOT / "kernels", package / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
        file = package / "kernels" / mutant.file
        text = file.read_text()
        if text.count(mutant.before) < 1:
            return ""
        file.write_text(text.replace(mutant.before, mutant.after))
        tests = [
            ROOT / "tests/kernels" / name for name in ("attention_rows/test_rows.py", "decode_attention/test_decode.py")
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", "-k", "not memory", *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        failed = re.findall(r"^FAILED \S+/(\w+)\.py::(\w+)", done.stdout, re.MULTILINE)
        if done.returncode != bool(failed):
            raise SystemExit(done.stdout + done.stderr)
        return ", ".join(f"{file}.py::{test}" for file, test in failed)


if __name__ == "__main__":
    assert not caught(Mutant("none", "common/triton_reduce.py", "import triton", "import triton")), (
        "the tests fail as it is"
    )
    escaped = False
    for mutant in MUTANTS:
        by = caught(mutant)
        escaped |= not by
        print(f"{mutant.fault}: {by or 'NOT CAUGHT'}", flush=True)
    sys.exit(escaped)
