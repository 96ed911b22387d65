"""The commands of the command line, and their options. What each command does is in a module of its own."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from typing import NoReturn

from ..client import DEFAULT_ADDRESS, Client
from ..views.terminal import escape_controls, make_console, print_text
from . import attribute as attribute_command
from . import demo as demo_command


class _Parser(argparse.ArgumentParser):
    """A parser whose errors quote arguments without their control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(escape_controls(message, keep_lines=True))


def make_parser() -> argparse.ArgumentParser:
    """The parser of `sidelight` and all its commands; each command's `run` does what it says."""
    parser = _Parser(
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


def _add_serve(commands: argparse._SubParsersAction[_Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The server's own module says what it takes; it comes in without torch, which is needed only to run it.
    from ...server.entrypoints import serve as command

    def run(args: argparse.Namespace) -> int:
        try:
            return command.run(args)
        except ModuleNotFoundError as error:
            return _missing(error)

    serve = commands.add_parser("serve", help="load a model and serve it")
    command.add_arguments(serve)
    serve.set_defaults(run=run)


def _add_kernels(commands: argparse._SubParsersAction[_Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The kernels' package imports torch, so even what its commands take is known only once one is run. Whatever follows
    # is handed on: without the sign that options begin with, nothing here is an option, not even --help.
    kernels = commands.add_parser(
        "kernels", help="check, measure and build the GPU kernels", add_help=False, prefix_chars="\0"
    )
    kernels.add_argument("arguments", nargs="*")
    kernels.set_defaults(run=_kernels)


def _kernels(args: argparse.Namespace) -> int:
    try:
        from ...server.entrypoints import kernels as kernels_command

        return kernels_command.main(args.arguments)
    except ModuleNotFoundError as error:
        return _missing(error)


def _missing(error: ModuleNotFoundError) -> int:
    """For what is not installed with the client."""
    print(f"sidelight: {error.name} is missing; install it with: pip install 'sidelight[server]'", file=sys.stderr)
    return 1


def _models(args: argparse.Namespace) -> int:
    console = make_console(force_terminal=sys.stdout.isatty())
    with Client(args.address) as client:
        for model in client.list_models(timeout=30):
            kinds = ", ".join(f"{kind} {size.layers}x{size.heads}" for kind, size in model.attentions.items())
            print_text(console, f"{model.name}  {model.family}, {model.dtype} on {model.device}; {kinds}")
    return 0
