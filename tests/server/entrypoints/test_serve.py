"""What `sidelight serve` prints until it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).with_name("sidelight"))


def lines_until_serving(*options: str) -> tuple[str, list[str]]:
    """The first line of standard output, and all lines of the log until then."""
    command = [COMMAND, "serve", "--address", "127.0.0.1:0", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=tempfile.gettempdir(), env=environment
        )
        with process:
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            lines = log.read().split("\n")
            process.send_signal(signal.SIGKILL)
    return line, [line for line in lines if line.strip()]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_start_prints_five_lines_at_most():
    line, log = lines_until_serving()
    assert line.startswith("sidelight: serving tatoeba-en-de at 127.0.0.1:")
    assert len(log) <= 4
    assert not any("\r" in line or "DEBUG" in line for line in log)
    said = "\n".join(log)
    assert "loading the bundled model" in said
    assert "packed 34 linear layers in float32" in said
    assert "32 slots of 256 source and 256 target tokens" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("level", "least"), [("debug", 8), ("warning", 0)])
def test_the_log_says_as_much_as_it_is_asked_for(level, least):
    _, log = lines_until_serving("--log-level", level)
    assert len(log) >= least if least else not log
