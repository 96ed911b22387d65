"""`sidelight demo`."""

from __future__ import annotations

import signal

import pytest
from cli_process import run, start
from sidelight.client.cli import demo as demo_command
from sidelight.client.cli.main import main


@pytest.mark.slow
def test_the_demonstration_translates_and_stops_its_server():
    completed = run("demo", "A small dog.", "[/INST] :car:")
    assert completed.returncode == 0, completed.stderr
    assert "Ein kleiner Hund." in completed.stdout
    assert "\n[/INST] :car:\n" in completed.stdout
    address = next(word for word in completed.stdout.split() if word.startswith("127.0.0.1:")).rstrip(":")
    assert main(["models", "--address", address]) == 1  # the server is gone


@pytest.mark.slow
def test_sigterm_ends_the_demonstration_and_its_server():
    process = start("demo")
    try:
        for line in process.stdout:
            if "127.0.0.1:" in line:
                break
        address = next(word for word in line.split() if word.startswith("127.0.0.1:")).rstrip(":")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()
    assert main(["models", "--address", address]) == 1


def test_a_demonstration_without_a_server_says_why(tmp_path, monkeypatch, capsys):
    script = tmp_path / "sidelight"
    script.write_text("#!/bin/sh\necho 'sidelight: torch is missing; install it' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(demo_command.sys, "executable", str(tmp_path / "python"))
    assert main(["demo"]) == 1
    assert capsys.readouterr().err == "sidelight: torch is missing; install it\n"
