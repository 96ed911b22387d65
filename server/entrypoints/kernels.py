"""`sidelight kernels`: the commands of the kernels, with the launches that a server of a model would make."""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels.tools import cli as command
from ..runner.warmup import planned


def main(argv: Sequence[str]) -> int:
    """Runs a command. Returns the exit status."""
    return command.main(argv, planned)
