"""Ctrl-C while Python imports modules, and Ctrl-C that is ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from cli_process import COMMAND


def test_nothing_slow_is_imported_before_ctrl_c_is_handled():
    """Exceptions are modules of Python's own start-up, and the modules of Sidelight that handle Ctrl-C."""
    script = """
import builtins, signal, sys
real = builtins.__import__

def note(name, names=None, locals=None, members=(), level=0):
    is_handled = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    if not is_handled and not level and not name.startswith("sidelight"):
        print(name)
    return real(name, names, locals, members, level)

builtins.__import__ = note
sys.argv = ["sidelight", "--version"]
from sidelight.client.cli.main import main
main()
"""
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd="/", check=True
    )
    *imported, version = completed.stdout.split("\n")[:-1]
    assert version.startswith("sidelight ")
    # Python has imported these already, or has them without a file. __future__ has only 150 lines.
    assert set(imported) <= {"__future__", "_io", "_signal", "atexit", "io", "os", "sys"}


@pytest.mark.parametrize("module", ["argparse", "numpy.linalg", "grpc._common", "rich.console"])
def test_ctrl_c_during_imports_prints_no_traceback(module):
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    command = [COMMAND, "attribute", "--file", "-", "--address", "127.0.0.1:1"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        # Python prints the name of each module that it imports.
        for line in process.stderr:
            if line.split("|")[-1].strip() == module:
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert [line for line in err.splitlines() if not line.startswith("import time:")] == ["sidelight: interrupted"]


def test_an_ignored_sigint_stays_ignored(fake):
    """A shell ignores SIGINT for the commands that it runs in the background."""
    script = f"trap '' INT; echo ready; {COMMAND} attribute --file - --quiet --address {fake.address}"
    process = subprocess.Popen(
        ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("one two\n")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "eno owt\n")
