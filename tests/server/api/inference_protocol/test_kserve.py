"""KServe's client from PyPI, unchanged, in an environment of its own: it asks for another protobuf than Sidelight."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hostile_clients import SENTENCE
from inference_stubs import infer_request, inference_stub, tensors_of

ROOT = Path(__file__).parents[4]
# Names an interpreter to use in place of the one from `make test-kserve`.
PYTHON = Path(os.environ.get("SIDELIGHT_CLIENTS_PYTHON") or ROOT / ".venv-clients" / "bin" / "python")


def test_kserves_client_gets_what_raw_calls_get(bundled_server, tmp_path):
    if not PYTHON.exists():
        pytest.skip("KServe's client needs protobuf 6, and so an environment of its own: make test-kserve")
    script = ROOT / "tests" / "support" / "kserve_calls.py"
    texts = [SENTENCE, "A dog."]
    run = subprocess.run(
        [PYTHON, script, bundled_server, *texts], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert (said["live"], said["server"], said["model"]) == (True, True, True)
    wanted = ["text_output", "links", "cross_attention"]
    with inference_stub(bundled_server) as service:
        message = infer_request(*texts, outputs=wanted, max_new_tokens=4)
        expected = tensors_of(service.ModelInfer(message, timeout=60))
    for form in ("contents", "raw"):
        found = said[form]
        assert list(found) == wanted
        assert found["text_output"] == expected["text_output"]
        assert found["links"] == expected["links"]
        np.testing.assert_allclose(found["cross_attention"], expected["cross_attention"], atol=1e-5)
