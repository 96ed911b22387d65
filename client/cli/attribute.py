"""`sidelight attribute`: runs the command, and shows one text with its attention."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable

from rich.console import Console

from ..client import Client
from ..formats import check_path, save
from ..offset_units import Span, Token
from ..parameters import Source
from ..request import AttributeOptions
from ..results import Attribution, Step, Unit
from ..views import Heatmap, make_console, print_alignment, print_error, print_message, print_text
from .attribute_file import attribute_file
from .attribute_options import build_options, capture_all_kinds
from .connection_options import build_connection
from .lines import open_lines
from .sources import parse_source


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns the exit status. Raises SidelightError."""
    if (args.text is None) == (args.file is None):
        args.fail("give either TEXT or --file FILE")
    if args.file is not None and args.target is not None:
        args.fail("--target goes with TEXT, not with --file")
    if args.file is not None and args.hypotheses and not str(args.save).endswith(".npz"):
        args.fail("--hypotheses goes with TEXT, or with --save and a .npz file, which has a place for them")
    try:
        if args.save:
            check_path(args.save)
        options = build_options(args)
        if args.file is not None:
            with open_lines(args.file) as lines:
                return asyncio.run(attribute_file(args, options, lines))
        return _attribute_text(args, options)
    except BrokenPipeError:  # `main` handles it
        raise
    except OSError as error:
        # `save` writes a temporary file, and the error names that file: the user has never seen its name.
        name = args.file if error.filename == args.file else args.save or "standard output"
        print_error(f"{'standard input' if name == '-' else name}: {error.strerror}")
        return 1
    except ValueError as error:
        print_error(str(error))
        return 1


def print_attribution(
    client: Client, source: Source, options: AttributeOptions, console: Console, *, quiet: bool = False
) -> Attribution:
    """Attributes a source. Prints its steps as they arrive, then the whole target. Raises SidelightError."""
    with client.attribute(source, **options) as stream:
        if not quiet:
            started = stream.started
            heatmap = Heatmap(console, started)
            heatmap.print_header()
            targets: list[Token | Span] = []
            rows: Iterable[Step | Unit] = stream if started.grouping == "token" else stream.units()
            for row in rows:
                targets.append(row.token if isinstance(row, Step) else row.span)
                heatmap.print_step(row, (*started.context_positions, *targets))
        attribution = stream.result()
    print_text(console, attribution.text, style="" if quiet else "bold")
    if len(attribution.hypotheses) > 1:
        for hypothesis in attribution.hypotheses:
            print_text(console, f"{hypothesis.score:7.3f}  {hypothesis.text}")
    if not quiet:
        _print_observations(console, attribution)
    return attribution


def _print_observations(console: Console, attribution: Attribution) -> None:
    """Prints the links and the signals of a target, where the server has sent any."""
    if attribution.alignment is not None:
        print_alignment(console, attribution.alignment)
    if attribution.signals is not None:
        for name, value in attribution.signals.by_name().items():
            print_text(console, f"{value:5.2f}  {name.replace('_', ' ')}")


def _attribute_text(args: argparse.Namespace, options: AttributeOptions) -> int:
    source = parse_source(args.text, args.source_kind)
    with Client(args.address, **build_connection(args)) as client:
        if args.save:
            capture_all_kinds(options, list(client.get_model(args.model, timeout=30).attentions))
        # With --quiet, FORCE_COLOR must not make a terminal of a pipe: the text alone has no colours.
        forced = sys.stdout.isatty() if args.quiet else None
        console = make_console(no_color=args.no_color, force_terminal=forced)
        attribution = print_attribution(client, source, options, console, quiet=args.quiet)
    if args.save:
        save(attribution, args.save)
        print_message(f"saved {args.save}")
    return 0
