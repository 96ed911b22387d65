"""`sidelight align`: links the words of a pair, or of the pairs of a file, and carries markup over."""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, get_args

from ..alignments import (
    Alignment,
    LinkFeature,
    LinkMethod,
    LinkOptions,
    ManyAlignment,
    Markup,
    Pair,
    Symmetrization,
)
from ..client import Client
from ..errors import SidelightError, describe_error
from ..formats import check_picture_path, save_picture
from ..parameters import Row
from ..request import AlignOptions
from ..views import make_console, make_progress_bar, print_alignment, print_error, print_message, print_text
from .attribute_file import choose_console
from .attribute_options import parse_heads, parse_layers
from .connection_options import add_connection_arguments, add_model_arguments, build_connection
from .lines import Line, count_lines, is_line_error, open_lines

_MARKUPS = ("none", "html", "xml", "xliff", "placeholders")
_OUTPUTS = ("table", "text", "json", "pharaoh")

# How many pairs are under way: as many as a server has slots, and more to begin as soon as one of them ends.
_MAX_RUNNING = 48

# What became of a line: its links, the error of a line that failed, or None for an empty line.
_LineResult = Alignment | SidelightError | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight align` to a parser."""
    parser.set_defaults(fail=parser.error)
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="the source, with its markup")
    parser.add_argument("--target", metavar="TEXT", help="the target; otherwise the model writes it")
    parser.add_argument(
        "--pairs", metavar="FILE", help="a file with a pair on each line: source, tab, target; - is standard input"
    )
    add_model_arguments(parser, "pair")
    _add_markup_arguments(parser)
    _add_link_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", choices=_OUTPUTS, help="table (the default; text with --pairs), text, json or pharaoh"
    )
    output.add_argument("--save", metavar="PATH", help="save a picture of the links: .svg, or .html, a page")
    output.add_argument("--no-color", action="store_true", help="no colours")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    add_connection_arguments(parser)


def _add_markup_arguments(parser: argparse.ArgumentParser) -> None:
    markup = parser.add_argument_group("markup of the source")
    markup.add_argument(
        "--markup", choices=_MARKUPS, default="none", help="the kind of markup in the source; default none"
    )
    markup.add_argument("--strict", action="store_true", help="refuse malformed markup; XML and XLIFF: the default")
    markup.add_argument("--lenient", action="store_true", help="keep malformed markup as it is; HTML: the default")
    markup.add_argument("--split", action="store_true", help="repeat an element whose words come apart")
    markup.add_argument("--placeholders", action="store_true", help="keep placeholders in HTML, XML and XLIFF too")
    markup.add_argument("--placeholder-pattern", default="", metavar="RE2", help="one more pattern of placeholders")
    markup.add_argument("--split-sentences", action="store_true", help="translate each sentence by itself")


def _add_link_arguments(parser: argparse.ArgumentParser) -> None:
    links = parser.add_argument_group("links")
    links.add_argument("--links", metavar="PHARAOH", help="links of another aligner, such as '0-0 1-1': no model runs")
    links.add_argument("--pretokenized", action="store_true", help="words are what white space separates")
    links.add_argument(
        "--min-score",
        type=float,
        default=0.0,
        metavar="SCORE",
        help="leave out links with a lower score, 0 to 1; default 0",
    )
    links.add_argument("--method", choices=get_args(LinkMethod), help="how links are chosen; default: as calibrated")
    links.add_argument(
        "--features",
        type=_parse_features,
        default=(),
        metavar="FEATURES",
        help=f"of {', '.join(get_args(LinkFeature))}, separated by commas; default: as calibrated",
    )
    links.add_argument(
        "--layers",
        type=parse_layers,
        metavar="LAYERS",
        help="the layers whose mean is used, from 0; default: as calibrated",
    )
    links.add_argument(
        "--heads", type=parse_heads, metavar="L.H[:W],...", help="single heads, LAYER.HEAD from 0, such as 2.3,2.0"
    )
    links.add_argument("--row", choices=get_args(Row), help="the query that predicts a token, or reads it")
    links.add_argument("--reverse-model", default="", metavar="NAME", help="a model of the other direction, to join")
    links.add_argument("--symmetrization", choices=get_args(Symmetrization), help="how two directions are joined")


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns the exit status. Raises SidelightError."""
    _check_arguments(args)
    options = _build_options(args)
    try:
        if args.save:
            check_picture_path(args.save)
        if args.pairs is None:
            return _align_pair(args, options)
        with (
            open_lines(args.pairs, all_columns=True) as lines,
            Client(args.address, **build_connection(args)) as client,
        ):
            return _print_results(args, _align_lines(client, lines, options))
    except BrokenPipeError:  # `main` handles it
        raise
    except OSError as error:
        name = args.pairs if error.filename == args.pairs else args.save or "standard output"
        print_error(f"{'standard input' if name == '-' else name}: {error.strerror}")
        return 1
    except ValueError as error:
        print_error(str(error))
        return 1


def _check_arguments(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.pairs is None):
        args.fail("give either SOURCE or --pairs FILE")
    if args.pairs is not None:
        for name in ("target", "links", "save"):
            if getattr(args, name) is not None:
                args.fail(f"--{name} goes with SOURCE, not with --pairs")
        if args.output == "table":
            args.fail("--output table goes with SOURCE, not with --pairs")
    if args.strict and args.lenient:
        args.fail("give either --strict or --lenient")
    if args.markup == "none":
        for name in ("strict", "lenient", "split", "placeholders", "placeholder_pattern", "split_sentences"):
            if getattr(args, name):
                args.fail(f"--{name.replace('_', '-')} needs --markup")


def _build_options(args: argparse.Namespace) -> AlignOptions:
    options: AlignOptions = {
        "model": args.model,
        "source_language": args.source_language,
        "target_language": args.target_language,
        "pretokenized": args.pretokenized,
        "min_score": args.min_score,
        "heads": args.heads,
        "layers": args.layers,
        "row": args.row,
        "links": args.links or "",
        "signals": args.output == "json" and args.links is None,
        "timeout": args.timeout,
    }
    if args.markup != "none":
        strict = True if args.strict else False if args.lenient else None
        options["markup"] = Markup(
            args.markup,
            strict=strict,
            split=args.split,
            placeholders=args.placeholders,
            placeholder_pattern=args.placeholder_pattern,
            split_sentences=args.split_sentences,
        )
    link_options = LinkOptions(args.method, args.features, args.reverse_model, args.symmetrization)
    if link_options != LinkOptions(features=()):
        options["link_options"] = link_options
    return options


def _parse_features(text: str) -> tuple[LinkFeature, ...]:
    features: list[Any] = text.split(",")
    for name in features:
        if name not in get_args(LinkFeature):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(get_args(LinkFeature))}")
    return tuple(features)


# ---- one pair -------------------------------------------------------------------------------------------------------


def _align_pair(args: argparse.Namespace, options: AlignOptions) -> int:
    with Client(args.address, **build_connection(args)) as client:
        alignment = client.align(args.source, args.target, **options)
    is_table = args.output in (None, "table")
    console = make_console(no_color=args.no_color, force_terminal=None if is_table else sys.stdout.isatty())
    print_text(console, _format(alignment, args.output or "text") if not is_table else alignment.marked_target_text)
    if is_table:
        print_alignment(console, alignment)
    if args.save:
        save_picture(alignment, args.save)
        print_message(f"saved {args.save}")
    return 0


def _format(alignment: Alignment, output: str) -> str:
    if output == "json":
        return json.dumps(_json_fields(alignment), ensure_ascii=False)
    return alignment.pharaoh if output == "pharaoh" else alignment.marked_target_text


def _json_fields(alignment: Alignment) -> dict[str, Any]:
    source, target = alignment.source, alignment.target
    return {
        "target": alignment.marked_target_text,
        "links": [
            {
                "source": [source[link.source].begin, source[link.source].end],
                "target": [target[link.target].begin, target[link.target].end],
                "score": round(link.score, 6),
            }
            for link in alignment.links
        ],
        "pharaoh": alignment.pharaoh,
        "markup": {
            "report": [
                {
                    "markup": report.markup,
                    "source": list(report.source),
                    "target": list(report.target),
                    "placement": report.placement,
                    "score": round(report.score, 6),
                }
                for report in alignment.report
            ]
        },
        "stop_reason": alignment.stop_reason,
        "signals": {} if alignment.signals is None else alignment.signals.by_name(),
    }


# ---- the pairs of a file --------------------------------------------------------------------------------------------


def _align_lines(client: Client, lines: Iterator[Line], options: AlignOptions) -> Iterator[_LineResult]:
    """Yields the results of lines, in the order of the lines, with several pairs under way on one stream.

    Raises:
        SidelightError: An error that all lines would have.
        OSError: The lines cannot be read further.
    """
    order: deque[Pair | SidelightError | None] = deque()  # of the lines without a result

    def list_pairs() -> Iterator[Pair]:
        for line in lines:
            parsed = _parse_pair(line)
            order.append(parsed)
            if isinstance(parsed, tuple):
                yield parsed

    def take_others() -> Iterator[_LineResult]:
        while order and not isinstance(order[0], tuple):
            result = order.popleft()
            assert not isinstance(result, tuple)
            yield result

    with client.align_many(list_pairs(), max_running=_MAX_RUNNING, **options) as stream:
        for result in stream:
            yield from take_others()
            order.popleft()
            yield _line_result(result)
    yield from take_others()


def _parse_pair(line: Line) -> Pair | SidelightError | None:
    """Returns the pair of a line; None for an empty line."""
    if not isinstance(line, str):
        return line
    if not line.strip():
        return None
    source, tab, target = line.partition("\t")
    return source, target.partition("\t")[0] if tab else None


def _line_result(result: ManyAlignment) -> _LineResult:
    """Returns the result of a line. Raises an error that all lines would have."""
    if result.error is not None and not is_line_error(result.error):
        raise result.error
    return result.error or result.alignment


def _print_results(args: argparse.Namespace, results: Iterator[_LineResult]) -> int:
    """Prints each line's result as it comes, beside a progress bar. Returns the exit status."""
    num_lines = num_failed = 0
    output = args.output or "text"
    with make_progress_bar(quiet=args.quiet) as progress:
        console = choose_console(progress)
        task = progress.add_task("", total=None if progress.disable else count_lines(args.pairs))
        for result in results:
            num_lines += 1
            progress.advance(task)
            if isinstance(result, Alignment):
                print_text(console, _format(result, output).replace("\n", " "))
                continue
            print_text(console, "null" if output == "json" else "")
            if result is not None:
                num_failed += 1
                print_error(f"line {num_lines}: {describe_error(result)}")
    return 1 if num_failed else 0
