"""The commands `models`, `cancel` and `serve`."""

from __future__ import annotations

import shutil
import signal
import subprocess

import pytest
from cli_process import COMMAND, run
from sidelight.client import CancelledError, Client, Decoding
from sidelight.client.cli.main import main


def test_models_are_listed(fake, capsys):
    assert main(["models", "--address", fake.address]) == 0
    assert "teller  fake, float32 on cpu; decoder_self 2x3" in capsys.readouterr().out.splitlines()


def test_what_a_model_takes_is_listed(bundled_server, capsys):
    assert main(["models", "--address", bundled_server]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    assert name.startswith("tatoeba-en-de  marian")
    parts = dict(line.strip().split(": ") for line in lines if ": " in line)
    with Client(bundled_server) as client:
        model = client.get_model()
    assert lines[0] == f"  at most {model.max_source_tokens} tokens in, {model.max_target_tokens} tokens out"
    assert parts["methods"] == "weights, value_norms, rollout"
    assert parts["word boundaries"] == model.word_boundaries
    assert f"beam_width {model.limits.max_beam_width}" in parts["limits"].split(", ")
    assert model.limits.max_source_bytes > 0
    assert (model.capture_path, model.presets) == ("rows", ("alignment",))
    assert model.calibration is not None
    assert f"error rate {model.calibration.alignment_error_rate:.3f} on 1000 pairs" in parts["alignment"]


def test_health_is_the_exit_status(fake, capsys):
    for service, status, printed in (("", 0, "SERVING\n"), ("asleep", 1, "NOT_SERVING\n"), ("nobody", 1, "")):
        assert main(["health", "--service", service, "--address", fake.address]) == status
        assert capsys.readouterr().out == printed
    assert main(["health", "--address", "127.0.0.1:1"]) == 1
    assert "no server answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.slow
def test_serve_says_when_it_is_ready_and_stops_at_sigterm():
    process = subprocess.Popen(
        [COMMAND, "serve", "--address", "127.0.0.1:0", "--name", "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("sidelight: serving mine at 127.0.0.1:")
        address = line.split()[-1]
        completed = run("models", "--address", address)
        assert completed.stdout.startswith("mine  marian, float32 on cpu")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_serve_says_what_it_cannot_load(tmp_path):
    completed = run("serve", str(tmp_path))
    assert completed.returncode == 1
    assert completed.stderr.strip().splitlines()[-1].startswith(f"sidelight: cannot load {tmp_path}")
    assert "Traceback" not in completed.stderr


@pytest.mark.slow
def test_pickled_weights_are_not_loaded(tmp_path):
    """A checkpoint without safetensors could run code when it is loaded."""
    import torch
    from sidelight.server.models.loader import bundled_model

    shutil.copytree(bundled_model(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    completed = run("serve", str(tmp_path / "model"))
    assert completed.returncode == 1
    assert "safetensors" in completed.stderr.strip().splitlines()[-1]


def test_a_request_is_cancelled_by_its_id(bundled_server, capsys):
    with Client(bundled_server) as client:
        stream = client.attribute("A dog.", request_id="mine", decoding=Decoding(max_new_tokens=250, ignore_eos=True))
        next(stream)
        assert main(["cancel", "mine", "--address", bundled_server]) == 0
        assert capsys.readouterr().err == "cancelled 1 request\n"
        with pytest.raises(CancelledError):
            stream.result()
    assert main(["cancel", "mine", "--address", bundled_server]) == 1
    assert "no request mine runs" in capsys.readouterr().err
