"""Plants faults in a copy of the kernels, one after another, and prints which test catches each. Takes minutes.

    python tests/kernels/mutants.py [WORDS]

With WORDS, plants only the faults whose names have them. The exit status is 1 if no test catches a fault, or if the
code of a fault no longer exists.
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
    Mutant(
        "rows: causal mask missing",
        "common/triton_scores.py",
        "inside & (k <= score_params.first_position + t)",
        "inside",
    ),
    Mutant(
        "decode: causal mask missing",
        "decode_attention/triton_kernel.py",
        "end = sizes.visible_keys",
        "end = sizes.keys",
    ),
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
        "PRECISION)\n    return masked_scores(",
        "PRECISION)\n    scores = scores.to(tl.float16).to(tl.float32)\n    return masked_scores(",
    ),
    Mutant(
        "decode: float16 accumulation",
        "decode_attention/triton_kernel.py",
        "        row_max = new_max\n\n",
        "        row_max = new_max\n        output = output.to(tl.float16).to(tl.float32)\n\n",
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
        "device_constant(spec.weights, torch.float32",
        "device_constant(spec.weights, torch.int32",
    ),
    Mutant("columns not looked at", "common/triton_output.py", " or spec.columns is not None", ""),
    Mutant(
        "decode: NaN hidden by other splits",
        "decode_attention/triton_kernel.py",
        "tl.where(reciprocal != 0.0",
        "tl.where(reciprocal > 0.0",
    ),
    Mutant(
        "a slice of queries begins at the first",
        "common/attention_params.py",
        "first_position=self.first_position + queries.start",
        "first_position=self.first_position",
    ),
    Mutant(
        "factors of the wrong head",
        "common/triton_output.py",
        "spec.factors.address + b * spec.factors.b + h * spec.factors.h",
        "spec.factors.address + b * spec.factors.b",
    ),
    Mutant(
        "factors of positions instead of keys",
        "attention_rows/triton_kernel.py",
        "x, b, h, k.to(tl.int64)[None, :], is_key)",
        "x, b, h, s.to(tl.int64)[None, :], is_key)",
    ),
    Mutant(
        "rows: the share of what is kept",
        "attention_rows/triton_kernel.py",
        "(1 - kept).clamp(0, 1)",
        "kept.clamp(0, 1)",
    ),
    Mutant(
        "decode: the greatest score of the keys that are left out",
        "decode_attention/triton_kernel.py",
        "    denominator[..., 0] = row_max\n",
        "",
    ),
    Mutant(
        "reference: shares of selected heads by the factors of the first",
        "common/key_weighting.py",
        "factors = factors[:, device_constant(spec.heads, torch.int32, factors.device)]",
        "factors = factors[:, : len(spec.heads)]",
    ),
    Mutant(
        "reference: a row that leaves out everything is divided by 0",
        "common/key_weighting.py",
        "torch.where(kept == 0, 1.0, kept)",
        "kept",
    ),
    Mutant(
        "shares of the last layer alone",
        "common/key_weighting.py",
        "        value = value + target[:, :, spec.column]\n",
        "        pass\n",
    ),
    Mutant(
        "reference: causal mask too narrow",
        "common/attention_reference.py",
        "device=key.device) <= last",
        "device=key.device) < last",
    ),
]


def caught(mutant: Mutant) -> str:
    """Returns the first test that fails; nothing if no test fails, or if the code does not exist."""
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
        names = ("attention_rows/test_rows.py", "decode_attention/test_decode.py", "common/test_key_weighting.py")
        tests = [ROOT / "tests/kernels" / name for name in names]
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
        "the tests fail without a fault"
    )
    escaped = False
    for mutant in MUTANTS:
        if " ".join(sys.argv[1:]) not in mutant.fault:
            continue
        test = caught(mutant)
        escaped |= not test
        print(f"{mutant.fault}: {test or 'NOT CAUGHT'}", flush=True)
    sys.exit(escaped)
