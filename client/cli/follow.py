"""`sidelight follow`: reads words from standard input as they come, and writes their translation as far as it is firm.

What is written never changes: the server commits tokens by the policy AlignAtt, and a word is written when it is
complete. Each line is a text of its own; a line that is too long for the model is translated part by part. A line that
fails is named on standard error, and the next lines follow.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import re
import select
import threading
from collections.abc import Iterator
from itertools import accumulate
from typing import get_args

from rich.console import Console

from ..client import AsyncClient
from ..connection import ConnectionOptions
from ..errors import SidelightError, describe_error
from ..follow import AsyncFollowStream, FollowOptions
from ..parameters import AlignAtt, Capture, Decoding, Row
from ..results import Started, Step
from ..views import count_complete, escape_controls, make_console, print_error
from .attribute_options import parse_heads, parse_layers
from .connection_options import add_connection_arguments, add_model_arguments, build_connection
from .lines import is_line_error, standard_input

# Words that are read ahead of the server.
_MAX_WAITING = 256

_BLOCK_BYTES = 64 * 1024

_END_OF_LINE = "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight follow` to a parser."""
    add_model_arguments(parser, "line")
    parser.add_argument("--prefix", metavar="TEXT", help="the beginning of the target of each line")
    held_back = parser.add_mutually_exclusive_group()
    held_back.add_argument(
        "--hold-words", type=int, metavar="N", help="wait where a token looks at the last N words; default 2"
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
    add_connection_arguments(parser)


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
        num_failed = asyncio.run(_follow_lines(args.address, build_connection(args), options))
    except UnicodeDecodeError as error:
        print_error(f"standard input: not UTF-8: {error.reason} at byte {error.start}")
        return 1
    return 1 if num_failed else 0


async def _follow_lines(address: str, connection: ConnectionOptions, options: FollowOptions) -> int:
    """Translates all lines. Returns how many lines have failed. Raises SidelightError for an error of all lines."""
    console = make_console()
    pieces = _Pieces()
    number, num_failed = 1, 0
    async with AsyncClient(address, **connection) as client:
        while (piece := await pieces.read()) is not None:
            error = None
            if piece != _END_OF_LINE:
                line = _Line([piece], pieces)
                error = await _follow_line(client, options, line, console)
                if error is not None:
                    print_error(f"line {number}: {describe_error(error)}")
                    await line.skip()
            _write(console, "\n")
            num_failed += error is not None
            number += 1
    return num_failed


async def _follow_line(
    client: AsyncClient, options: FollowOptions, line: _Line, console: Console
) -> SidelightError | None:
    """Translates a line: part by part if the line is too long for the model. Returns the error of the line.

    A stream ends where the next piece of its source is too long. A second stream then writes the rest of the part's
    target, behind what is written. The next part begins with the piece that was too long.
    """
    text, error = await _follow_part(client, options, line, console)
    while error is not None and _is_too_long(error) and line.num_read:
        part = line.split()
        begun: FollowOptions = {**options, "prefix": f"{options.get('prefix') or ''}{text}" or None}
        rest, error = await _follow_part(client, begun, part, console)
        if error is not None:
            break
        text += rest
        if count_complete(text) < len(text):  # the script of the target puts spaces between words
            _write(console, " ")
        options = {**options, "prefix": None}
        text, error = await _follow_part(client, options, line, console)
    return error


async def _follow_part(
    client: AsyncClient, options: FollowOptions, line: _Line, console: Console
) -> tuple[str, SidelightError | None]:
    """Translates what waits of a line, on one stream. Returns the text that is written, and the error of the line."""
    async with client.follow(**options) as stream:
        sending = asyncio.create_task(line.send(stream))
        text, error = await _write_target(stream, line, console)
        if error is not None and not sending.done():
            sending.cancel()  # a stream that has failed takes no more, and the next piece may be long in coming
            await asyncio.wait([sending])
        if not sending.cancelled():
            await sending  # raises what standard input has raised
    return text, error


def _is_too_long(error: SidelightError) -> bool:
    """Whether the source of a stream has become too long for the model."""
    return error.reason == "TEXT_TOO_LONG" and error.field.startswith("source")


async def _write_target(stream: AsyncFollowStream, line: _Line, console: Console) -> tuple[str, SidelightError | None]:
    """Writes each word as soon as it is complete. Returns what `_follow_part` does. Raises an error of all lines."""
    text, num_written = "", 0
    try:
        async for event in stream:
            if isinstance(event, Started):
                line.note_read(len(event.source_text))
            elif isinstance(event, Step):
                text += event.text
                num_complete = count_complete(text)
                if num_complete > num_written:
                    _write(console, text[num_written:num_complete])
                    num_written = num_complete
    except SidelightError as error:
        if not is_line_error(error):
            raise
        if _is_too_long(error):  # the word that is not complete is written anew
            return text[:num_written], error
        _write(console, text[num_written:])
        return text, error
    _write(console, text[num_written:])
    return text, None


def _write(console: Console, text: str) -> None:
    """Writes text behind what was written. On a terminal, control characters are escaped."""
    console.file.write(escape_controls(text, keep_lines=True) if console.is_terminal else text)
    console.file.flush()


# ---- standard input -------------------------------------------------------------------------------------------------


class _Pieces:
    """Words with the white space before them, and each end of a line, as they come.

    A thread reads, since a read cannot be interrupted, and the command must not wait for it.
    """

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[str | Exception | None] = asyncio.Queue(_MAX_WAITING)
        self._is_ended = False
        threading.Thread(target=self._fill, args=(asyncio.get_running_loop(),), daemon=True).start()

    def _fill(self, loop: asyncio.AbstractEventLoop) -> None:
        last: Exception | None = None
        try:
            for piece in _split_words(_read_text()):
                asyncio.run_coroutine_threadsafe(self._waiting.put(piece), loop).result()
        except RuntimeError:  # the loop is closed
            return
        except Exception as error:
            last = error
        asyncio.run_coroutine_threadsafe(self._waiting.put(last), loop)

    async def read(self) -> str | None:
        """Returns the next piece; None at the end. A task that is cancelled here loses no piece.

        Raises UnicodeDecodeError.
        """
        if self._is_ended:
            return None
        piece = await self._waiting.get()
        if isinstance(piece, Exception):
            raise piece
        self._is_ended = piece is None
        return piece


class _Line:
    """One line, piece by piece, as far as it is not translated.

    Attributes:
        num_read: How many characters the model has read on the present stream.
    """

    def __init__(self, waiting: list[str], pieces: _Pieces | None = None) -> None:
        """`waiting` are the first pieces. The others come from `pieces`, up to the end of the line."""
        self._waiting = waiting
        self._pieces = pieces  # None: no more pieces come
        self._reading = asyncio.Event()  # something new has been read
        self.num_read = 0

    async def send(self, stream: AsyncFollowStream) -> None:
        """Sends all pieces as they come, each when the model has read those before it. Raises UnicodeDecodeError."""
        self.num_read = num_characters = num_sent = 0
        try:
            while num_sent < len(self._waiting) or await self._read():
                await stream.add_source(self._waiting[num_sent])
                num_characters += len(self._waiting[num_sent])
                num_sent += 1
                while self.num_read < num_characters:  # so it is known which piece is too long
                    self._reading.clear()
                    await self._reading.wait()
            await stream.complete_source()
        except UnicodeDecodeError:  # the server waits for no more source
            stream.cancel()
            raise

    def note_read(self, num_characters: int) -> None:
        """Takes note that the model has read so many characters."""
        self.num_read = num_characters
        self._reading.set()

    async def skip(self) -> None:
        """Reads up to the end of the line."""
        while await self._read():
            self._waiting.clear()

    def split(self) -> _Line:
        """Takes off the pieces that the model has read. Returns these as a line of their own."""
        ends = accumulate(map(len, self._waiting))
        count = sum(end <= self.num_read for end in ends)
        part, self._waiting = self._waiting[:count], self._waiting[count:]
        return _Line(["".join(part)])

    async def _read(self) -> bool:
        """Reads the next piece. Returns whether there is one."""
        if self._pieces is None:
            return False
        piece = await self._pieces.read()
        if piece is None or piece == _END_OF_LINE:
            self._pieces = None
            return False
        self._waiting.append(piece)
        return True


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
