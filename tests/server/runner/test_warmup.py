"""What is compiled before the server says that it serves is what requests launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import serving, stub
from model_zoo import build_model
from sidelight.kernels import record_launches
from sidelight.server.frontends import engine_group as server_module
from sidelight.server.runner import warmup

SCRIPT = Path(__file__).parent / "launch_keys.py"


@pytest.mark.slow  # every launch is compiled
def test_requests_launch_what_is_warm(tmp_path):
    """The bundled Marian, and T5 with its biases.

    Other families of the zoo have heads of 8 numbers, whose strides are multiples of 16 only now and then; no real
    model does.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, build_model("t5", tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    models = json.loads(done.stdout)
    assert len(models) == 2
    for found in models:
        assert found["asked"] > 20
        assert found["missing"] == []


@pytest.mark.slow
def test_every_kernel_is_warmed(bundled):
    names = {launch.kernel.__name__ for launch in warmup.launches(bundled)}
    assert names == {
        "attend_kernel",
        "row_kernel",
        "packed_row_kernel",
        "denominator_kernel",
        "rows_kernel",
        "packed_rows_kernel",
    }


def test_models_that_give_whole_matrices(zoo):
    """Theirs are whole matrices, laid out by `layout_into`."""
    assert {launch.kernel.__name__ for launch in warmup.launches(zoo("fsmt"))} == {
        "layout_kernel",
        "packed_layout_kernel",
    }


def test_a_server_is_warm_before_it_serves(bundled, monkeypatch):
    warmed = []
    monkeypatch.setattr(server_module, "warm", lambda loaded: warmed.append(loaded))
    with serving(bundled) as address:
        assert warmed == [bundled]
        with stub(address):
            pass


def test_nothing_is_launched_on_a_cpu(bundled):
    with record_launches() as launches:
        warmup.warm(bundled)
    assert launches == []
