"""The parser of the command line: its commands and their arguments. Each command runs in a module of its own."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable

from sidelight.v1 import attribution_service_pb2

from ...client import AsyncClient
from ...views import print_error, print_message
from .. import align as align_command
from .. import attribute as attribute_command
from .. import attribute_options
from .. import demo as demo_command
from .. import follow as follow_command
from ..connection_options import add_connection_arguments, build_connection
from . import completion as completion_command
from . import queries
from .help import CommandParser, Commands, add_command, format_examples

_FIRST_STEPS = (
    "sidelight demo                   # translate and show attention in this terminal",
    "sidelight ui                     # the same in the browser, live",
    "sidelight serve                  # serve the bundled model at 127.0.0.1:50051 ...",
    "sidelight attribute 'A dog.'     # ... and ask it, from another terminal",
)


def make_parser() -> CommandParser:
    """Makes the parser of `sidelight` with all its commands. The attribute `run` of its result runs the command."""
    parser = CommandParser(
        prog="sidelight",
        usage="sidelight COMMAND ...",
        description="Shows, token by token, where a translation model or a language model looks while it writes.",
        epilog=f"`sidelight COMMAND --help` explains a command.\n\n{format_examples(_FIRST_STEPS)}",
    )
    contract = attribution_service_pb2.DESCRIPTOR.package
    parser.add_argument(
        "--version",
        action="version",
        version=f"sidelight {importlib.metadata.version('sidelight')} (contract {contract})",
        help="show the version of Sidelight and of its gRPC contract, and exit",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", prog="sidelight")
    _add_demo(commands)
    _add_ui(commands)
    _add_attribute(commands)
    _add_align(commands)
    _add_follow(commands)
    _add_queries(commands)
    _add_serve(commands)
    _add_top(commands)
    _add_calibrate(commands)
    _add_kernels(commands)
    _add_completion(commands)
    return parser


def _add_demo(commands: Commands) -> None:
    demo = add_command(
        commands,
        "demo",
        "translate a few sentences and show where the model looks",
        "It starts a server on the bundled English-German model, and stops the server at the end.",
        examples=("sidelight demo", "sidelight demo 'Where is the station?'"),
    )
    demo_command.add_arguments(demo)
    demo.set_defaults(run=demo_command.run)


def _add_attribute(commands: Commands) -> None:
    attribute = add_command(
        commands,
        "attribute",
        "send a text, or a file of texts, and show the attention",
        "A server must run: `sidelight serve` starts one. TEXT alone shows a heatmap of the attention.",
        usage="[OPTION ...] TEXT\n       sidelight attribute [OPTION ...] --file FILE",
        examples=(
            "sidelight attribute 'A dog.'",
            "sidelight attribute 'A dog.' --layers 2 --reduce-heads mean --save dog.html",
            "sidelight attribute 'A dog.' --target 'Ein Hund.' --show-links",
            "sidelight attribute --file texts.txt --save texts.npz",
        ),
    )
    attribute_options.add_arguments(attribute)
    attribute.set_defaults(run=attribute_command.run)


def _add_align(commands: Commands) -> None:
    align = add_command(
        commands,
        "align",
        "link the words of a text and its translation, and carry markup over",
        "A server must run: `sidelight serve` starts one.",
        usage="[OPTION ...] SOURCE\n       sidelight align [OPTION ...] --pairs FILE",
        examples=(
            "sidelight align 'A dog.' --target 'Ein Hund.'",
            "sidelight align 'A <b>big</b> dog.' --markup html",
            "sidelight align --pairs pairs.tsv --output pharaoh",
        ),
    )
    align_command.add_arguments(align)
    align.set_defaults(run=align_command.run)


def _add_follow(commands: Commands) -> None:
    follow = add_command(
        commands,
        "follow",
        "translate words from standard input as they come",
        "What is written never changes. A server must run: `sidelight serve` starts one.",
        usage="[OPTION ...]",
        examples=("sidelight follow", "sidelight follow --hold-words 3 < speech.txt"),
    )
    follow_command.add_arguments(follow)
    follow.set_defaults(run=follow_command.run)


def _add_queries(commands: Commands) -> None:
    models = add_command(
        commands,
        "models",
        "list the models that a server has loaded, and their limits",
        usage="[OPTION ...]",
        examples=("sidelight models", "sidelight models --address gpu.example.com:50051 --tls"),
    )
    add_connection_arguments(models)
    models.set_defaults(run=queries.list_models)

    health = add_command(
        commands,
        "health",
        "check whether a server serves",
        "Prints SERVING or NOT_SERVING. The exit status is 0 if it serves, otherwise 1.",
        usage="[OPTION ...]",
        examples=("sidelight health", "sidelight health --service tatoeba-en-de"),
    )
    health.add_argument(
        "--service", default="", metavar="NAME", help="a model, or a service of gRPC; without it, the whole server"
    )
    health.add_argument(
        "--timeout", type=float, default=5.0, metavar="SECONDS", help="how long to wait for the answer; default 5"
    )
    add_connection_arguments(health)
    health.set_defaults(run=queries.check_health)

    cancel = add_command(
        commands,
        "cancel",
        "cancel a running request by its id",
        usage="[OPTION ...] ID",
        examples=("sidelight attribute 'A dog.' --request-id mine &", "sidelight cancel mine"),
    )
    cancel.add_argument("request_id", metavar="ID", help="what --request-id of `sidelight attribute` has said")
    add_connection_arguments(cancel)
    cancel.set_defaults(run=queries.cancel)


def _add_completion(commands: Commands) -> None:
    completion = add_command(
        commands,
        "completion",
        "print a script with which a shell completes commands and options",
        "Write the script where your shell looks for such scripts, and open a new terminal. Make the folder first, if "
        "there is none. bash needs the package bash-completion. zsh needs `fpath=(~/.zfunc $fpath)` before `compinit` "
        "in ~/.zshrc.",
        examples=(
            "sidelight completion bash > ~/.local/share/bash-completion/completions/sidelight",
            "sidelight completion zsh > ~/.zfunc/_sidelight",
            "sidelight completion fish > ~/.config/fish/completions/sidelight.fish",
        ),
    )
    completion_command.add_arguments(completion)
    completion.set_defaults(run=_print_script)


def _print_script(args: argparse.Namespace) -> int:
    return completion_command.print_script(args.shell, make_parser())


def _add_ui(commands: Commands) -> None:
    ui = add_command(
        commands,
        "ui",
        "show attention in the browser, live",
        "Without --address and SIDELIGHT_ADDRESS, it starts a server on the bundled English-German model.",
        usage="[OPTION ...]",
        examples=("sidelight ui", "sidelight ui --address 127.0.0.1:50051 --listen 127.0.0.1:8080"),
    )
    ui.add_argument(
        "--listen",
        default="127.0.0.1:8090",
        metavar="HOST:PORT",
        help="where the browser finds the page; port 0 picks a free one; default 127.0.0.1:8090",
    )
    ui.add_argument(
        "--host",
        action="append",
        default=[],
        metavar="NAME",
        help="a further name of the page, HOST or HOST:PORT, as a proxy or another machine calls it",
    )
    ui.add_argument("--quiet", action="store_true", help="say nothing while a server starts")
    add_connection_arguments(ui, default_server="a server of its own")
    ui.set_defaults(run=_needs("ui", _run_ui), address=os.environ.get("SIDELIGHT_ADDRESS"))


def _run_ui(args: argparse.Namespace) -> int:
    from ...ui import Listener, ListenError, listen, serve

    def serve_page(listener: Listener, connect: Callable[[], AsyncClient]) -> None:
        serve(connect, listener, lambda: print(f"sidelight: page at {listener.url}", flush=True))

    try:
        with listen(args.listen, args.host) as listener:
            if args.address is not None:
                serve_page(listener, lambda: AsyncClient(args.address, **build_connection(args)))
                return 0
            if not args.quiet:
                print_message("starting a server on the bundled model ...")
            with demo_command.bundled_server(quiet=args.quiet) as (_, address):
                serve_page(listener, lambda: AsyncClient(address, tls=False, token=""))
    except (ListenError, demo_command.ServerError) as error:
        print_error(str(error))
        return 1
    return 0


def _add_serve(commands: Commands) -> None:
    # The server's own module defines the arguments. Its import does not need torch; only running the command does.
    from ....server.entrypoints import serve as serve_command

    serve = add_command(
        commands,
        "serve",
        "load a model and serve it",
        "Each option is also a variable, SIDELIGHT_ and its name, and a key of the file of --config. It serves until "
        "Ctrl-C or SIGTERM.",
        usage="[OPTION ...] [MODEL]",
        examples=(
            "sidelight serve                          # the bundled English-German model",
            "sidelight serve Helsinki-NLP/opus-mt-en-fr",
            "sidelight serve ./my-model --address 0.0.0.0:50051 --tls-cert cert.pem --tls-key key.pem",
        ),
    )
    serve_command.add_arguments(serve)
    serve.set_defaults(run=_needs("server", serve_command.run))

    config = add_command(
        commands,
        "config",
        "print the settings of `sidelight serve`, and where each comes from",
        "It takes the options of `sidelight serve` and starts nothing. The output is a file for --config.",
        usage="[OPTION ...] [MODEL]",
        examples=("sidelight config", "sidelight config --max-slots 8 > sidelight.toml"),
    )
    serve_command.add_arguments(config)
    config.set_defaults(run=_needs("server", serve_command.print_settings))


def _add_top(commands: Commands) -> None:
    from ....server.entrypoints import top as top_command

    top = add_command(
        commands,
        "top",
        "show calls, slots, rates and times of a server, from its metrics",
        "The server must have been started with --metrics-address. Ctrl-C ends the display.",
        examples=(
            "sidelight serve --metrics-address 127.0.0.1:9464   # in another terminal",
            "sidelight top",
        ),
    )
    top_command.add_arguments(top)
    top.set_defaults(run=_needs("server", top_command.run))


def _add_calibrate(commands: Commands) -> None:
    from ....server.entrypoints import calibrate as calibrate_command

    calibrate = add_command(
        commands,
        "calibrate",
        "find the heads of a model that align words",
        "It writes them to a file in the model's folder, which `sidelight serve` reads. That takes some minutes.",
        usage="[OPTION ...] --pairs FILE.tsv [MODEL]",
        examples=(
            "sidelight calibrate ./my-model --pairs pairs.tsv",
            "sidelight calibrate ./my-model --pairs pairs.tsv --gold links.txt --picture heads.svg",
        ),
    )
    calibrate_command.add_arguments(calibrate)
    calibrate.set_defaults(run=_needs("server", calibrate_command.run))


def _add_kernels(commands: Commands) -> None:
    # The kernels' package imports torch, so even the arguments of its commands are defined only when one of them runs.
    # Everything behind `kernels` is passed on: NUL is set as the sign that options begin with, so this parser sees no
    # options, not even --help.
    kernels = commands.add_parser(
        "kernels", help="check, measure and build the GPU kernels", add_help=False, prefix_chars="\0"
    )
    kernels.add_argument("kernels_arguments", nargs="*")
    kernels.set_defaults(run=_needs("server", _run_kernels))


def _run_kernels(args: argparse.Namespace) -> int:
    from ....server.entrypoints import kernels as kernels_command

    return kernels_command.main(args.kernels_arguments)


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
