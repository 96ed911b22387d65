"""`sidelight attribute`: a text, or a file of them, from the command line to the screen and into files."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import re
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import get_args

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..client import DEFAULT_ADDRESS, AsyncClient, Client
from ..errors import SidelightError, describe, invalid
from ..formats.save import check_path, save
from ..parameters import (
    Capture,
    Decoding,
    Encoding,
    Head,
    Kind,
    Reduction,
    Row,
    Sampling,
    Score,
    SpecialTokensInText,
)
from ..request import Options
from ..results import Attribution, Token
from ..views.heatmap import Heatmap
from ..views.terminal import make_console, print_error, print_message, print_text
from .lines import Line, count_lines, next_line, open_lines

# Requests of a file that are under way at once: enough to keep a server busy while answers travel.
_AT_ONCE = 8

# Statuses that say nothing of a line's text.
_OF_EVERY_LINE = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight attribute`."""
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text to translate or to continue")
    parser.add_argument("--file", metavar="FILE", help="one text a line instead; of a .tsv the first column; -: stdin")
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the server")
    parser.add_argument("--model", default="", metavar="NAME", help="a loaded model; the default one without it")
    parser.add_argument("--target", metavar="TEXT", help="attribute this target instead of writing one")
    parser.add_argument("--prefix", metavar="TEXT", help="what the target starts with")
    parser.add_argument("--source-language", default="", metavar="CODE", help="for models that need one")
    parser.add_argument("--target-language", default="", metavar="CODE", help="for models that need one")
    parser.add_argument(
        "--special-tokens-in-text",
        choices=get_args(SpecialTokensInText),
        default="text",
        help='what becomes of "</s>" and its like in TEXT: text, or special tokens (parse), for rendered prompts',
    )
    parser.add_argument(
        "--no-special-tokens", action="store_true", help="put none around TEXT: it is a prompt that is rendered already"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="the most that one text may take")

    capture = parser.add_argument_group("what to capture")
    capture.add_argument("--kinds", type=_kinds, metavar="KINDS", help=f"of {', '.join(get_args(Kind))}, with commas")
    capture.add_argument("--layers", type=_numbers, metavar="LAYERS", help="such as 0,2-4; all without it")
    capture.add_argument(
        "--heads",
        type=_heads,
        metavar="L.H[:W],...",
        help="single heads, such as 2.3,2.0; with weights 2.3:0.8,2.0:0.2",
    )
    capture.add_argument("--reduce", choices=get_args(Reduction), help="make one of the heads, then of the layers")
    capture.add_argument("--reduce-heads", choices=get_args(Reduction), help="make one of the heads only")
    capture.add_argument("--reduce-layers", choices=get_args(Reduction), help="then make one of the layers")
    capture.add_argument("--row", choices=get_args(Row), default="predicting", help="the query that predicts or reads")
    capture.add_argument("--encoding", choices=get_args(Encoding), default="float32", help="the numbers on the wire")
    # Not --top-k: that is a way of drawing tokens, and one may want both.
    capture.add_argument("--top-positions", type=int, default=0, metavar="K", help="only each row's K greatest")
    scores = ", ".join(get_args(Score))
    capture.add_argument("--scores", type=_scores, default=(), metavar="SCORES", help=f"of {scores}, with commas")

    decoding = parser.add_argument_group("how to decode")
    decoding.add_argument("--max-new-tokens", type=int, metavar="N", help="the most tokens to write")
    decoding.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    decoding.add_argument("--temperature", type=float, metavar="T", help="with --sample")
    decoding.add_argument("--top-k", type=int, metavar="K", help="with --sample")
    decoding.add_argument("--top-p", type=float, metavar="P", help="with --sample")
    decoding.add_argument("--seed", type=int, metavar="N", help="with --sample")

    output = parser.add_argument_group("output")
    output.add_argument("--save", metavar="PATH", help=".json for Inseq, .npz for NumPy, .html to look at")
    output.add_argument("--no-color", action="store_true", help="shades instead of colours")
    output.add_argument("--quiet", action="store_true", help="the text alone")


def run(args: argparse.Namespace) -> int:
    """Does what the arguments say. Returns the exit status. Raises SidelightError."""
    if (args.text is None) == (args.file is None):
        print_message("sidelight attribute: give either TEXT or --file FILE")
        return 2
    if args.file is not None and args.target is not None:
        print_message("sidelight attribute: --target goes with TEXT, not with --file")
        return 2
    try:
        if args.save:
            check_path(args.save)
        options = _options(args)
        if args.file is not None:
            with open_lines(args.file) as lines:
                return asyncio.run(_file(args, options, lines))
        return _text(args, options)
    except BrokenPipeError:  # the caller knows what to do with that one
        raise
    except OSError as error:
        # Saving goes through a file of another name, which would tell nobody anything.
        name = args.file if error.filename == args.file else args.save or "standard output"
        print_error(f"{'standard input' if name == '-' else name}: {error.strerror}")
        return 1
    except ValueError as error:
        print_error(str(error))
        return 1


# ---- options --------------------------------------------------------------------------------------------------------


def _options(args: argparse.Namespace) -> Options:
    over_heads = args.reduce_heads or args.reduce
    # A list of heads is one axis: reducing it leaves no layers.
    over_layers = args.reduce_layers or (None if args.heads or args.reduce_heads else args.reduce)
    strategy = None
    drawing = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    if args.sample:
        strategy = Sampling(**drawing)
    elif any(value is not None for value in drawing.values()):
        raise invalid("sample", "--temperature, --top-k, --top-p and --seed need --sample")
    decoding = Decoding(strategy, args.max_new_tokens)
    if args.target is not None and decoding != Decoding():
        raise invalid("target", "a given target is not decoded: --target goes without decoding options")
    options: Options = {
        "model": args.model,
        "source_language": args.source_language,
        "target_language": args.target_language,
        "capture": Capture(
            kinds=args.kinds or (),
            layers=args.layers,
            heads=args.heads,
            over_heads=over_heads,
            over_layers=over_layers,
            row=args.row,
            encoding=args.encoding,
            top_k=args.top_positions,
        ),
        "scores": args.scores,
        "timeout": args.timeout,
    }
    if args.target is None:
        options["decoding"] = decoding
    else:
        options["target"] = args.target
    if args.prefix is not None:
        options["prefix"] = args.prefix
    if args.special_tokens_in_text != "text":
        options["special_tokens_in_text"] = args.special_tokens_in_text
    if args.no_special_tokens:
        options["add_special_tokens"] = False
    return options


def _with_all_kinds(options: Options, kinds: Sequence[Kind]) -> None:
    """A file holds all that the model has, where nothing else was asked."""
    capture = options.get("capture") or Capture()
    if not capture.kinds:
        options["capture"] = dataclasses.replace(capture, kinds=tuple(kinds))


def _numbers(text: str) -> list[int]:
    """Numbers and ranges: "0,2-4" is 0, 2, 3, 4."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"invalid number or range: {part!r}")
        numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return numbers


def _heads(text: str) -> list[Head]:
    """Heads, each with a weight or without one: "2.3,0.1:0.5" is (2, 3), (0, 1, 0.5)."""
    heads: list[Head] = []
    for part in text.split(","):
        if (match := re.fullmatch(r"(\d+)\.(\d+)(?::(\d+(?:\.\d*)?|\.\d+))?", part)) is None:
            raise argparse.ArgumentTypeError(f"invalid LAYER.HEAD[:WEIGHT]: {part!r}")
        layer, head = int(match[1]), int(match[2])
        heads.append((layer, head) if match[3] is None else (layer, head, float(match[3])))
    return heads


def _kinds(text: str) -> list[str]:
    return _words(text, get_args(Kind))


def _scores(text: str) -> list[str]:
    return _words(text, get_args(Score))


def _words(text: str, known: Sequence[str]) -> list[str]:
    words = text.split(",")
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
    return words


# ---- one text -------------------------------------------------------------------------------------------------------


def _text(args: argparse.Namespace, options: Options) -> int:
    with Client(args.address) as client:
        if args.save:
            _with_all_kinds(options, list(client.get_model(args.model, timeout=30).attentions))
        # The text alone has no colours that one could force into a pipe.
        forced = sys.stdout.isatty() if args.quiet else None
        console = make_console(no_color=args.no_color, force_terminal=forced)
        attribution = show(client, args.text, options, console, quiet=args.quiet)
    if args.save:
        save(attribution, args.save)
        print_message(f"saved {args.save}")
    return 0


def show(client: Client, text: str, options: Options, console: Console, *, quiet: bool = False) -> Attribution:
    """Attributes a text and prints its steps as they arrive, then the whole target. Raises SidelightError."""
    with client.attribute(text, **options) as stream:
        if not quiet:
            started = stream.started
            context = (*(() if started.is_encoder_decoder else started.source), *started.prefix)
            heatmap = Heatmap(console, started)
            heatmap.header()
            steps: list[Token] = []
            for step in stream:
                heatmap.step(step, (*context, *steps, step.token))
                steps.append(step.token)
        attribution = stream.result()
    print_text(console, attribution.text, style="" if quiet else "bold")
    return attribution


# ---- a file ---------------------------------------------------------------------------------------------------------


async def _file(args: argparse.Namespace, options: Options, lines: Iterator[Line]) -> int:
    """Attributes all lines, several at once; prints the targets in order.

    A line that fails leaves an empty one and a message; the others go on. What fails for every line ends the run, as
    does a file that cannot be read on, and what there is by then is saved.
    """
    kept: list[Attribution] = []
    failure: SidelightError | OSError | None = None
    began = time.monotonic()
    tokens = done = failed = 0
    async with AsyncClient(args.address) as client:
        if args.save:
            _with_all_kinds(options, list((await client.get_model(args.model, timeout=30)).attentions))
        # Closed before the client is: what is under way when printing fails must not be left to itself.
        async with aclosing(_in_order(client, lines, options)) as attributions:
            with _progress(quiet=args.quiet) as progress:
                output = _output_beside(progress)
                task = progress.add_task("", total=None if progress.disable else count_lines(args.file))
                try:
                    async for attribution in attributions:
                        done += 1
                        progress.advance(task)
                        if not isinstance(attribution, Attribution):  # an empty line stays one
                            print_text(output, "")
                            if attribution is not None:
                                failed += 1
                                print_error(f"line {done}: {describe(attribution)}")
                            continue
                        tokens += len(attribution.steps)
                        print_text(output, attribution.text.replace("\n", " "))
                        if args.save:
                            kept.append(attribution)
                except SidelightError as error:
                    failure = error
                except OSError as error:
                    if error.filename != args.file:  # the output's
                        raise
                    failure = error
    seconds = time.monotonic() - began
    if not args.quiet and not failure:
        rate = tokens / seconds if seconds else 0.0
        but = f", {failed} refused" if failed else ""
        print_message(f"{done} texts{but}, {tokens} tokens in {seconds:.1f} s: {rate:.0f} tokens/s")
    if args.save and (kept or not failure):
        save(kept, args.save)
        print_message(f"saved {args.save}")
    if failure:
        raise failure
    return 1 if failed else 0


async def _in_order(
    client: AsyncClient, lines: Iterator[Line], options: Options
) -> AsyncGenerator[Attribution | SidelightError | None, None]:
    """The lines' attributions in the lines' order, with several requests under way. Each is given when it is there.

    None for an empty line, the error for one that fails. Raises SidelightError for what concerns them all, and OSError,
    behind all others, where the lines cannot be read on.
    """

    async def attribute(line: Line) -> Attribution | SidelightError | None:
        if isinstance(line, SidelightError):
            return line
        if not line.strip():
            return None
        try:
            return await client.attribute(line, **options).result()
        except SidelightError as error:
            if _concerns_one_line(error):
                return error
            raise

    # The last one stays: its line is None, or its error says why there are no more.
    reading = asyncio.create_task(next_line(lines))
    running: deque[asyncio.Task[Attribution | SidelightError | None]] = deque()
    try:
        while True:
            line = reading.result() if reading.done() and not reading.exception() else None
            if line is not None and len(running) < _AT_ONCE:
                running.append(asyncio.create_task(attribute(line)))
                reading = asyncio.create_task(next_line(lines))
            elif running and running[0].done():
                yield running.popleft().result()
            elif running or not reading.done():
                waited = {*([] if reading.done() else [reading]), *([running[0]] if running else [])}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            else:
                reading.result()
                return
    finally:
        for task in (reading, *running):
            task.cancel()
        await asyncio.gather(reading, *running, return_exceptions=True)


def _concerns_one_line(error: SidelightError) -> bool:
    """Whether a line fails alone: its text is to blame, or how long it took. Other faults are every line's."""
    if error.status is grpc.StatusCode.INVALID_ARGUMENT:
        # How many tokens may be written depends on how many were read.
        numbers = ("decoding.max_new_tokens", "decoding.min_new_tokens")
        return error.field in numbers or error.field.partition(".")[0] in ("", "source", "given", "prefix")
    return error.status not in _OF_EVERY_LINE


def _output_beside(progress: Progress) -> Console:
    """Where the texts go: stdout; through the bar's console where both are terminals, so that texts pass above it."""
    if sys.stdout.isatty() and not progress.disable:
        return progress.console
    return make_console(force_terminal=sys.stdout.isatty())


def _progress(*, quiet: bool) -> Progress:
    """A bar on stderr, where there is someone to see it: stdout is for the texts."""
    console = make_console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("texts"), TimeRemainingColumn())
    disable = quiet or not console.is_terminal
    return Progress(*columns, console=console, disable=disable, transient=True, redirect_stdout=False)
