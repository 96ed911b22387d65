"""`sidelight attribute --file`: attributes the lines of a file, several at once, and prints the targets in order."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress

from ..client import AsyncClient
from ..errors import SidelightError, describe_error
from ..formats import save
from ..many_state import ManyResult
from ..parameters import Source
from ..request import AttributeOptions
from ..results import Attribution
from ..views import make_console, make_progress_bar, print_error, print_message, print_text
from .attribute_options import capture_all_kinds
from .connection_options import build_connection
from .lines import Line, count_lines, is_line_error, next_line
from .sources import SourceKind, parse_source

# How many texts are under way: as many as a server has slots, and more to begin as soon as one of them ends.
_MAX_RUNNING = 48

# The result of a line: its attribution, the error of a line that failed, or None for an empty line.
LineResult = Attribution | SidelightError | None


@dataclass
class _Summary:
    """Counts of the lines that are done, and their attributions if they are to be saved."""

    num_lines: int = 0
    num_failed: int = 0
    num_tokens: int = 0
    attributions: list[Attribution] = field(default_factory=list[Attribution])


async def attribute_file(args: argparse.Namespace, options: AttributeOptions, lines: Iterator[Line]) -> int:
    """Attributes all lines, several at once, and prints the targets in order. Returns the exit status.

    A line that fails prints an empty line and a message, and the other lines go on. An error that all lines would have
    ends the run, and so does a file that cannot be read further. The attributions so far are then saved all the same.

    Raises:
        SidelightError: An error that all lines would have.
        OSError: The file cannot be read, or the output cannot be written.
    """
    summary = _Summary()
    failure: SidelightError | OSError | None = None
    began = time.monotonic()
    async with AsyncClient(args.address, **build_connection(args)) as client:
        if args.save:
            capture_all_kinds(options, list((await client.get_model(args.model, timeout=30)).attentions))
        # Closed before the client is closed: if printing fails, the running requests must be cancelled and awaited.
        async with aclosing(_attribute_lines(client, lines, args.source_kind, options)) as results:
            try:
                await _print_results(args, results, summary)
            except SidelightError as error:
                failure = error
            except OSError as error:
                if error.filename != args.file:  # an error of the output
                    raise
                failure = error
    if not args.quiet and not failure:
        _print_summary(summary, time.monotonic() - began)
    if args.save and (summary.attributions or not failure):
        save(summary.attributions, args.save)
        print_message(f"saved {args.save}")
    if failure:
        raise failure
    return 1 if summary.num_failed else 0


async def _print_results(
    args: argparse.Namespace, results: AsyncGenerator[LineResult, None], summary: _Summary
) -> None:
    """Prints each line's result as it comes, beside a progress bar, and counts it."""
    with make_progress_bar(quiet=args.quiet) as progress:
        console = choose_console(progress)
        task = progress.add_task("", total=None if progress.disable else count_lines(args.file))
        async for result in results:
            summary.num_lines += 1
            progress.advance(task)
            if isinstance(result, Attribution):
                summary.num_tokens += len(result.steps)
                print_text(console, result.text.replace("\n", " "))
                if args.save:
                    summary.attributions.append(result)
                continue
            print_text(console, "")
            if result is not None:
                summary.num_failed += 1
                print_error(f"line {summary.num_lines}: {describe_error(result)}")


def _print_summary(summary: _Summary, seconds: float) -> None:
    rate = summary.num_tokens / seconds if seconds else 0.0
    refused = f", {summary.num_failed} refused" if summary.num_failed else ""
    print_message(
        f"{summary.num_lines} texts{refused}, {summary.num_tokens} tokens in {seconds:.1f} s: {rate:.0f} tokens/s"
    )


async def _attribute_lines(
    client: AsyncClient, lines: Iterator[Line], kind: SourceKind, options: AttributeOptions
) -> AsyncGenerator[LineResult, None]:
    """Yields the results of lines, in the order of the lines, with several texts under way on one stream.

    Raises:
        SidelightError: An error that all lines would have.
        OSError: The lines cannot be read further. It comes after the results of all lines before.
    """
    line_texts = _LineTexts(lines, kind)
    async with client.attribute_many(line_texts.texts(), max_running=_MAX_RUNNING, **options) as stream:
        next_result = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                while line_texts.has_untexted:
                    yield line_texts.pop()
                line_texts.changed.clear()
                change = asyncio.ensure_future(line_texts.changed.wait())
                try:
                    await asyncio.wait({next_result, change}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
                if next_result.done():
                    result = next_result.result()
                    if result is None:  # the lines before the end that are no texts
                        while line_texts.has_untexted:
                            yield line_texts.pop()
                        return
                    line_texts.pop()
                    yield _line_result(result)
                    next_result = asyncio.ensure_future(anext(stream, None))
        finally:
            next_result.cancel()
            await asyncio.gather(next_result, return_exceptions=True)


class _LineTexts:
    """The texts of lines, and the lines in between that are none: empty lines, and lines that cannot be read.

    Attributes:
        changed: Set when a line has been read.
    """

    _TEXT = object()

    def __init__(self, lines: Iterator[Line], kind: SourceKind) -> None:
        self.changed = asyncio.Event()
        self._lines = lines
        self._kind: SourceKind = kind
        self._order: deque[object] = deque()  # of each line without a result: a text, or its result

    async def texts(self) -> AsyncGenerator[Source, None]:
        """Yields the sources of lines that are texts. Raises OSError where the lines cannot be read further."""
        while (line := await next_line(self._lines)) is not None:
            source: Source | None = None
            result = line if isinstance(line, SidelightError) else None
            if isinstance(line, str) and line.strip():
                try:
                    source = parse_source(line, self._kind)
                except SidelightError as error:
                    result = error
            self._order.append(result if source is None else self._TEXT)
            self.changed.set()
            if source is not None:
                yield source

    @property
    def has_untexted(self) -> bool:
        """Whether the first line without a result is no text."""
        return bool(self._order) and self._order[0] is not self._TEXT

    def pop(self) -> SidelightError | None:
        """Takes the first line out. Returns the result of a line that is no text."""
        result = self._order.popleft()
        return result if isinstance(result, SidelightError) else None


def _line_result(result: ManyResult) -> LineResult:
    """Returns the result of a line. Raises an error that all lines would have."""
    if result.error is not None and not is_line_error(result.error):
        raise result.error
    return result.error or result.attribution


def choose_console(progress: Progress) -> Console:
    """Returns the console for the texts, which go to stdout.

    If stdout and the progress bar are both on a terminal, this is the bar's console: rich prints texts above the bar.
    """
    if sys.stdout.isatty() and not progress.disable:
        return progress.console
    return make_console(force_terminal=sys.stdout.isatty())
