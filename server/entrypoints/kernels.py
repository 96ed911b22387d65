"""`sidelight kernels`: audits, measures and builds the kernels that run on GPUs.

The commands `audit` and `bench` need the kernels alone. The command `build` loads a model, plans what a server of the
model launches, and hands the launches to `kernels.tools`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ...kernels import Launch
from ...kernels.tools import audit_cli, bench_cli, prebuild_cli
from ..models import LoadedModel, ModelError, load
from ..runner import warmup
from .loading import hide_bars
from .progress import open_progress, show_loading


def main(argv: Sequence[str] | None) -> int:
    """Runs a command. Returns the exit status: 0 for success, 1 for a failure."""
    parser = argparse.ArgumentParser(
        prog="sidelight kernels", description="Checks, measures and builds the kernels that run on GPUs."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    audit = commands.add_parser("audit", help="compile every kernel for every GPU, and check what came out; no GPU")
    audit_cli.add_arguments(audit)
    audit.set_defaults(run=audit_cli.run)

    bench = commands.add_parser("bench", help="time every kernel on this machine's GPU")
    bench_cli.add_arguments(bench)
    bench.set_defaults(run=bench_cli.run)

    build = commands.add_parser("build", help="compile kernels ahead of time, for a server to find; no GPU")
    _add_model_arguments(build)
    prebuild_cli.add_arguments(build)
    build.set_defaults(run=_build)

    for command in (audit, bench, build):
        command.add_argument("--quiet", action="store_true", help="show no progress on the terminal")
    args = parser.parse_args(argv)
    return args.run(args)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="the model that will be served, as `sidelight serve` takes it; without it, the bundled one",
    )
    parser.add_argument(
        "--dtype",
        default="bfloat16",
        choices=("float32", "float16", "bfloat16"),
        help="the type that it will be served in; default bfloat16",
    )


def _build(args: argparse.Namespace) -> int:
    loaded: list[LoadedModel] = []

    def launches() -> list[Launch]:
        if not loaded:
            with open_progress(quiet=args.quiet) as progress:
                hide_bars(keeps_downloads=not args.quiet)
                with show_loading(progress, args.model) as on_stage:
                    model = load(args.model, device="cpu", dtype=args.dtype, packed=False, on_stage=on_stage)
                loaded.append(model)
        return warmup.launches(loaded[0])

    try:
        return prebuild_cli.run(args, launches)
    except ModelError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
