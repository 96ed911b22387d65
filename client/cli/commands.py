"""The parser of the command line: its commands and their arguments. Each command runs in a module of its own."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from ..client import AsyncClient, Client
from ..models import Calibration, Model
from ..views import escape_controls, make_console, print_error, print_message, print_text
from . import align as align_command
from . import attribute as attribute_command
from . import attribute_options
from . import demo as demo_command
from . import follow as follow_command
from .connection_options import add_connection_arguments, build_connection


class _EscapingParser(argparse.ArgumentParser):
    """A parser whose error messages quote arguments with their control characters escaped."""

    def error(self, message: str) -> NoReturn:
        super().error(escape_controls(message, keep_lines=True))


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of `sidelight` with all its commands. The attribute `run` of its result runs the command."""
    parser = _EscapingParser(
        prog="sidelight", description="Streams, token by token, where a sequence model looks while it writes."
    )
    parser.add_argument("--version", action="version", version=f"sidelight {importlib.metadata.version('sidelight')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="start a server on the bundled model and show what it does")
    demo_command.add_arguments(demo)
    demo.set_defaults(run=demo_command.run)

    attribute = commands.add_parser("attribute", help="send a text, or a file of texts, and show the attention")
    attribute_options.add_arguments(attribute)
    attribute.set_defaults(run=attribute_command.run)

    align = commands.add_parser("align", help="link the words of a text and its translation, and carry markup over")
    align_command.add_arguments(align)
    align.set_defaults(run=align_command.run)

    cancel = commands.add_parser("cancel", help="cancel a running request by its id")
    cancel.add_argument("request_id", metavar="ID", help="the id that the request was sent with")
    add_connection_arguments(cancel)
    cancel.set_defaults(run=_cancel)
    follow = commands.add_parser("follow", help="translate words from standard input as they come")
    follow_command.add_arguments(follow)
    follow.set_defaults(run=follow_command.run)

    models = commands.add_parser("models", help="list the models that a server has loaded")
    add_connection_arguments(models)
    models.set_defaults(run=_list_models)

    health = commands.add_parser("health", help="check whether a server serves; ends with 0 if so, else with 1")
    health.add_argument(
        "--service", default="", metavar="NAME", help="a model, or a service of gRPC; without one, the server"
    )
    health.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="without it, 5 seconds")
    add_connection_arguments(health)
    health.set_defaults(run=_check_health)

    _add_ui(commands)
    _add_serve(commands)
    _add_top(commands)
    _add_calibrate(commands)
    _add_kernels(commands)
    return parser


def _add_ui(commands: argparse._SubParsersAction[_EscapingParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    ui = commands.add_parser(
        "ui",
        help="show attention in the browser, live",
        description="Serves a page that shows attention while a text is written. Without an address of a server, "
        "it starts a server on the bundled model.",
    )
    add_connection_arguments(ui)
    ui.add_argument(
        "--listen", default="127.0.0.1:8090", metavar="HOST:PORT", help="where the browser finds the page; port 0: any"
    )
    ui.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of the page, HOST or HOST:PORT, as a proxy or another machine calls it",
    )
    ui.set_defaults(run=_needs("ui", _run_ui), address=os.environ.get("SIDELIGHT_ADDRESS"))


def _run_ui(args: argparse.Namespace) -> int:
    from ..ui import Listener, ListenError, listen, serve

    def serve_page(listener: Listener, connect: Callable[[], AsyncClient]) -> None:
        serve(connect, listener, lambda: print(f"sidelight: page at {listener.url}", flush=True))

    try:
        with listen(args.listen, args.host) as listener:
            if args.address is not None:
                serve_page(listener, lambda: AsyncClient(args.address, **build_connection(args)))
                return 0
            print_message("starting a server on the bundled model ...")
            with demo_command.bundled_server() as (_, address):
                serve_page(listener, lambda: AsyncClient(address, tls=False, token=""))
    except (ListenError, demo_command.ServerError) as error:
        print_error(str(error))
        return 1
    return 0


def _add_serve(commands: argparse._SubParsersAction[_EscapingParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The server's own module defines the arguments. Its import does not need torch; only running the command does.
    from ...server.entrypoints import serve as serve_command

    serve = commands.add_parser("serve", help="load a model and serve it")
    serve_command.add_arguments(serve)
    serve.set_defaults(run=_needs("server", serve_command.run))

    config = commands.add_parser("config", help="print the settings of `sidelight serve`, and where each comes from")
    serve_command.add_arguments(config)
    config.set_defaults(run=_needs("server", serve_command.print_settings))


def _add_top(commands: argparse._SubParsersAction[_EscapingParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    from ...server.entrypoints import top as top_command

    top = commands.add_parser("top", help="show calls, slots, rates and times of a server, from its metrics")
    top_command.add_arguments(top)
    top.set_defaults(run=_needs("server", top_command.run))


def _add_calibrate(commands: argparse._SubParsersAction[_EscapingParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    from ...server.entrypoints import calibrate as calibrate_command

    calibrate = commands.add_parser(
        "calibrate",
        help="find the heads of a model that align words",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    calibrate_command.add_arguments(calibrate)
    calibrate.set_defaults(run=_needs("server", calibrate_command.run))


def _add_kernels(commands: argparse._SubParsersAction[_EscapingParser]) -> None:  # pyright: ignore[reportPrivateUsage]
    # The kernels' package imports torch, so even the arguments of its commands are defined only when one of them runs.
    # Everything behind `kernels` is passed on: NUL is set as the sign that options begin with, so this parser sees no
    # options, not even --help.
    kernels = commands.add_parser(
        "kernels", help="check, measure and build the GPU kernels", add_help=False, prefix_chars="\0"
    )
    kernels.add_argument("arguments", nargs="*")
    kernels.set_defaults(run=_needs("server", _run_kernels))


def _run_kernels(args: argparse.Namespace) -> int:
    from ...server.entrypoints import kernels as kernels_command

    return kernels_command.main(args.arguments)


def _needs(extra: str, run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Returns a command that says which extra brings what it needs, where only the client is installed."""

    def run_or_say(args: argparse.Namespace) -> int:
        try:
            return run(args)
        except ModuleNotFoundError as error:
            message = f"{error.name} is missing; install it with: pip install 'sidelight[{extra}]'"
            print(f"sidelight: {message}", file=sys.stderr)
            return 1

    return run_or_say


def _cancel(args: argparse.Namespace) -> int:
    with Client(args.address, **build_connection(args)) as client:
        count = client.cancel_attribution(args.request_id, timeout=30)
    print_message(f"cancelled {count} request{'s' if count > 1 else ''}")
    return 0


def _check_health(args: argparse.Namespace) -> int:
    with Client(args.address, **build_connection(args)) as client:
        is_serving = client.check_health(args.service, timeout=args.timeout)
    print("SERVING" if is_serving else "NOT_SERVING")
    return 0 if is_serving else 1


def _list_models(args: argparse.Namespace) -> int:
    console = make_console(force_terminal=sys.stdout.isatty())
    with Client(args.address, **build_connection(args)) as client:
        for model in client.list_models(timeout=30):
            kinds = ", ".join(f"{kind} {size.layers}x{size.heads}" for kind, size in model.attentions.items())
            print_text(console, f"{model.name}  {model.family}, {model.dtype} on {model.device}; {kinds}")
            for line in _describe_model(model):
                print_text(console, f"  {line}")
    return 0


def _describe_model(model: Model) -> Iterator[str]:
    """Yields what a user of `sidelight attribute` may ask of a model, line by line."""
    yield f"at most {model.max_source_tokens} tokens in, {model.max_target_tokens} tokens out"
    if model.methods:
        yield f"methods: {', '.join(model.methods)}"
    if model.presets:
        yield f"presets of heads: {', '.join(model.presets)}"
    if model.calibration is not None:
        yield _describe_calibration(model.calibration)
    if model.languages:
        yield f"languages: {', '.join(model.languages)}"
    if model.word_boundaries:
        yield f"word boundaries: {model.word_boundaries}"
    if model.limits is not None:
        limits = dataclasses.asdict(model.limits)
        yield "limits: " + ", ".join(f"{name.removeprefix('max_')} {limit}" for name, limit in limits.items())


def _describe_calibration(calibration: Calibration) -> str:
    heads = ", ".join(f"{layer}.{head}:{weight:g}" for layer, head, weight in calibration.heads)
    lexicon = f", a lexicon of {calibration.lexicon_entries} pairs" if calibration.has_lexicon else ""
    states = ", encoder states" if calibration.has_encoder_states else ""
    figures = f"error rate {calibration.alignment_error_rate:.3f} on {calibration.pairs} pairs"
    return (
        f"alignment: heads {heads}, row {calibration.row}{lexicon}{states}; {figures} against {calibration.reference}"
    )
