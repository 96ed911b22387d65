"""The memory of long inputs grows with their length, not with its square: each row that is sent takes its own size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("long_inputs.py")

# What does not grow: the rows of a part and their copies, and the masks and logits of a pass.
BASE = 150e6


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of the memory")
def test_memory_grows_with_the_length_alone():
    support = str(Path(__file__).parents[2] / "support")
    environment = {**os.environ, "PYTHONPATH": support, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    # Matrices of 2 layers and 2 heads, for all queries, would be 16 GB, 16 GB, 0.3 GB and 1 GB.
    for name, per_token in (("prompt", 12_000), ("target", 12_000), ("all rows", 12_000), ("encoder", 12_000)):
        for length, memory in found[name].items():
            assert memory < BASE + per_token * int(length), (name, found[name])
