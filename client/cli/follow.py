"""`sidelight follow`: reads words from standard input as they come, and writes their translation as far as it is firm.

What is written never changes: the server commits tokens by the policy AlignAtt, and a word is written when it is
complete. Each line is a text of its own. A line that fails is named on standard error, and the next lines follow.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import re
import select
import threading
from collections.abc import AsyncIterator, Iterator
from typing import get_args

from rich.console import Console

from ..client import DEFAULT_ADDRESS, AsyncClient
from ..errors import SidelightError, describe_error
from ..follow import AsyncFollowStream, FollowOptions
from ..parameters import AlignAtt, Capture, Decoding, Row
from ..results import Step
from ..views import count_complete, escape_controls, make_console, print_error
from .attribute_options import parse_heads, parse_layers
from .lines import is_line_error, standard_input

# Words that are read ahead of the server.
_MAX_WAITING = 256

_BLOCK_BYTES = 64 * 1024

_END_OF_LINE = "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight follow` to a parser."""
    parser.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the server")
    parser.add_argument("--model", default="", metavar="NAME", help="a loaded model; otherwise the default model")
    parser.add_argument("--source-language", default="", metavar="CODE", help="for models that need one")
    parser.add_argument("--target-language", default="", metavar="CODE", help="for models that need one")
    parser.add_argument("--prefix", metavar="TEXT", help="the beginning of the target of each line")
    held_back = parser.add_mutually_exclusive_group()
    held_back.add_argument(
        "--hold-words", type=int, metavar="N", help="wait where a token looks at the last N words; the default is 2"
    )
    held_back.add_argument("--hold-tokens", type=int, metavar="N", help="wait where a token looks at the last N tokens")
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument(
        "--layers", type=parse_layers, metavar="LAYERS", help="the layers that say where a token looks, such as 1-2"
    )
    heads.add_argument(
        "--heads",
        type=parse_heads,
        metavar="L.H[:W],...",
        help="single heads instead, such as 2.3,2.0, or a preset of the model: alignment",
    )
    parser.add_argument(
        "--row", choices=get_args(Row), help="the query that predicts a token, which is the default, or reads it"
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="the greatest number of tokens of a line")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="the longest time for one line")


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns the exit status. Raises SidelightError."""
    words = args.hold_words if args.hold_tokens is not None or args.hold_words is not None else 2
    options: FollowOptions = {
        "model": args.model,
        "source_language": args.source_language,
        "target_language": args.target_language,
        "capture": Capture(none=True),
        "policy": AlignAtt(args.hold_tokens, words, args.layers, args.heads, args.row),
        "decoding": Decoding(max_new_tokens=args.max_new_tokens),
        "timeout": args.timeout,
        "prefix": args.prefix,
    }
    try:
        num_failed = asyncio.run(_follow_lines(args.address, options))
    except UnicodeDecodeError as error:
        print_error(f"standard input: not UTF-8: {error.reason} at byte {error.start}")
        return 1
    return 1 if num_failed else 0


async def _follow_lines(address: str, options: FollowOptions) -> int:
    """Translates all lines. Returns how many lines have failed. Raises SidelightError for an error of all lines."""
    console = make_console()
    pieces = _read_pieces()
    number, num_failed = 1, 0
    async with AsyncClient(address) as client:
        async for piece in pieces:
            error = None
            if piece != _END_OF_LINE:
                async with client.follow(**options) as stream:
                    sending = asyncio.create_task(_send_line(stream, piece, pieces))
                    error = await _write_target(stream, console)
                    if error is not None:
                        if sending.done():
                            sending.result()  # raises what standard input has raised
                        print_error(f"line {number}: {describe_error(error)}")
                    await sending  # a stream that has failed drops what it is sent
            _write(console, "\n")
            num_failed += error is not None
            number += 1
    return num_failed


async def _send_line(stream: AsyncFollowStream, piece: str, pieces: AsyncIterator[str]) -> None:
    """Sends the pieces of a line, up to the end of the line."""
    try:
        await stream.add_source(piece)
        async for following in pieces:
            if following == _END_OF_LINE:
                break
            await stream.add_source(following)
        await stream.complete_source()
    except UnicodeDecodeError:  # the server waits for no more source
        stream.cancel()
        raise


async def _write_target(stream: AsyncFollowStream, console: Console) -> SidelightError | None:
    """Writes each word as soon as it is complete. Returns the error of the line. Raises an error of all lines."""
    text, num_written = "", 0
    error: SidelightError | None = None
    try:
        async for event in stream:
            if isinstance(event, Step):
                text += event.text
                num_complete = count_complete(text)
                if num_complete > num_written:
                    _write(console, text[num_written:num_complete])
                    num_written = num_complete
    except SidelightError as stream_error:
        if not is_line_error(stream_error):
            raise
        error = stream_error
    _write(console, text[num_written:])
    return error


def _write(console: Console, text: str) -> None:
    """Writes text behind what was written. On a terminal, control characters are escaped."""
    console.file.write(escape_controls(text, keep_lines=True) if console.is_terminal else text)
    console.file.flush()


# ---- standard input -------------------------------------------------------------------------------------------------


async def _read_pieces() -> AsyncIterator[str]:
    """Yields words with the white space before them, and each end of a line, as they come.

    A thread reads, since a read cannot be interrupted, and the command must not wait for it. Raises UnicodeDecodeError.
    """
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[str | Exception | None] = asyncio.Queue(_MAX_WAITING)

    def read() -> None:
        last: Exception | None = None
        try:
            for piece in _split_words(_read_text()):
                asyncio.run_coroutine_threadsafe(waiting.put(piece), loop).result()
        except RuntimeError:  # the loop is closed
            return
        except Exception as error:
            last = error
        asyncio.run_coroutine_threadsafe(waiting.put(last), loop)

    threading.Thread(target=read, daemon=True).start()
    while (piece := await waiting.get()) is not None:
        if isinstance(piece, Exception):
            raise piece
        yield piece


def _read_text() -> Iterator[str]:
    """Yields the text of standard input as it comes."""
    file, decoder = standard_input(), codecs.getincrementaldecoder("utf-8")()
    while True:
        while (block := file.read(_BLOCK_BYTES)) is None:  # a non-blocking pipe that is empty for now
            select.select([file], [], [])
        yield decoder.decode(block, final=not block)
        if not block:
            return


def _split_words(texts: Iterator[str]) -> Iterator[str]:
    """Yields each complete word with the white space before it, and each end of a line. A line feed ends a line."""
    rest = ""
    for text in texts:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield from re.findall(r"\s*\S+", line)
            yield _END_OF_LINE
        num_complete = count_complete(rest)
        yield from re.findall(r"\s*\S+", rest[:num_complete])
        rest = rest[num_complete:]
    yield from re.findall(r"\s*\S+", rest)
