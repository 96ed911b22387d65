"""The command line in processes of its own, as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("sidelight"))
SENTENCE = "I don't want to be your friend."


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Starts a command, with pipes for its output. `options` go to Popen."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "COLUMNS": "80", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([COMMAND, *arguments], text=True, env=environment, cwd="/", **pipes)


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(
        [COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=120, env=environment, cwd="/"
    )
