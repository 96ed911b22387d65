"""`sidelight kernels`: the kernels' own commands, told what a server of a model would launch."""

from __future__ import annotations

from collections.abc import Sequence

from ...kernels.tools import cli as command
from ..runner.warmup import planned


def main(argv: Sequence[str]) -> int:
    """Runs a command. Returns the exit status."""
    return command.main(argv, planned)
