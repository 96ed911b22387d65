"""`sidelight kernels`: which commands there are. What each does is in a module of its own.

Those modules say what they take without triton; it comes in when one of them runs.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence

from . import (
    audit_cli as audit_command,
)
from . import (
    bench_cli as bench_command,
)
from . import (
    prebuild_cli as build_command,
)


def main(argv: Sequence[str] | None, plan: build_command.Plan) -> int:
    """Runs a command. Returns the exit status: 0 for success, 1 for a failure.

    `plan` says what a server of a model would launch, which nothing here knows.
    """
    parser = argparse.ArgumentParser(
        prog="sidelight kernels", description="Checks, measures and builds the kernels that run on GPUs."
    )
    add_arguments(parser, plan)
    args = parser.parse_args(argv)
    return args.run(args)


def add_arguments(parser: argparse.ArgumentParser, plan: build_command.Plan) -> None:
    """Adds the commands."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    audit = commands.add_parser("audit", help="compile every kernel for every GPU, and check what came out; no GPU")
    audit_command.add_arguments(audit)
    audit.set_defaults(run=audit_command.run)

    bench = commands.add_parser("bench", help="time every kernel on this machine's GPU")
    bench_command.add_arguments(bench)
    bench.set_defaults(run=bench_command.run)

    build = commands.add_parser("build", help="compile kernels ahead of time, for a server to find; no GPU")
    build_command.add_arguments(build)
    build.set_defaults(run=functools.partial(build_command.run, plan=plan))
