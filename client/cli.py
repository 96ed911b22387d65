"""The command line: which commands there are. What each does is in a module of its own."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from . import attribute_command, demo_command
from .client import DEFAULT_ADDRESS, Client
from .errors import SidelightError, UnavailableError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0 for success, 1 for a failure, 2 for a wrong command line."""
    # Tokens may be in any script, whatever the terminal can show.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except UnavailableError as error:
        # Demo has no address of its own: its server is gone.
        where = getattr(args, "address", "its address")
        print(f"sidelight: no server answers at {where}: {error}", file=sys.stderr)
        return 1
    except SidelightError as error:
        print(f"sidelight: {_told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sidelight: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has had enough
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _told(error: SidelightError) -> str:
    """One line, with the field that is to blame."""
    line = " ".join(str(error).split())
    return line if not error.field or error.field in line else f"{error.field}: {line}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sidelight", description="Streams, token by token, where a sequence model looks while it writes."
    )
    parser.add_argument("--version", action="version", version=f"sidelight {importlib.metadata.version('sidelight')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="start a server on the bundled model and show what it does")
    demo_command.add_arguments(demo)
    demo.set_defaults(run=demo_command.run)

    attribute = commands.add_parser("attribute", help="send a text, or a file of them, and show the attention")
    attribute_command.add_arguments(attribute)
    attribute.set_defaults(run=attribute_command.run)

    models = commands.add_parser("models", help="list what a server has loaded")
    models.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the server")
    models.set_defaults(run=_models)

    _add_serve(commands)
    _add_kernels(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The server's own module says what it takes; it comes in without torch, which is needed only to run it.
    from ..server import command

    def run(args: argparse.Namespace) -> int:
        try:
            return command.run(args)
        except ModuleNotFoundError as error:
            return _missing(error)

    serve = commands.add_parser("serve", help="load a model and serve it")
    command.add_arguments(serve)
    serve.set_defaults(run=run)


def _add_kernels(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The kernels' package imports torch, so even what its commands take is known only once one is run. Whatever follows
    # is handed on: without the sign that options begin with, nothing here is an option, not even --help.
    kernels = commands.add_parser(
        "kernels", help="check, measure and build the GPU kernels", add_help=False, prefix_chars="\0"
    )
    kernels.add_argument("arguments", nargs="*")
    kernels.set_defaults(run=_kernels)


def _kernels(args: argparse.Namespace) -> int:
    try:
        from ..server import kernels_command

        return kernels_command.main(args.arguments)
    except ModuleNotFoundError as error:
        return _missing(error)


def _missing(error: ModuleNotFoundError) -> int:
    """For what is not installed with the client."""
    print(f"sidelight: {error.name} is missing; install it with: pip install 'sidelight[server]'", file=sys.stderr)
    return 1


def _models(args: argparse.Namespace) -> int:
    console = Console(highlight=False, soft_wrap=True)
    with Client(args.address) as client:
        for model in client.list_models(timeout=30):
            kinds = ", ".join(f"{kind} {size.layers}x{size.heads}" for kind, size in model.attentions.items())
            console.print(f"{model.name}  {model.family}, {model.dtype} on {model.device}; {kinds}")
    return 0
