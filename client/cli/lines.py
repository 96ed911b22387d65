"""Reads the lines of a file or of standard input. Each line is a text. It reads no further than lines are needed.

It also says which errors are about a single line.
"""

from __future__ import annotations

import asyncio
import io
import re
import select
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import grpc

from ..errors import InvalidArgumentError, SidelightError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A server accepts no longer request.
MAX_LINE_BYTES = 4 * 1024**2

# One byte for a carriage return that ends the line, and one byte that makes the line too long. Further bytes of a line
# that is too long change nothing.
_MAX_BUFFER_BYTES = MAX_LINE_BYTES + 2

_BLOCK_BYTES = 64 * 1024

# Errors with these statuses are not about the text of a line: all other lines would fail too.
_STATUSES_OF_ALL_LINES = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
)

# Fields that depend on the text of a line: what a line has or may have of tokens, and places in a line.
_FIELDS_OF_LINES = (
    "",
    "source",
    "given",
    "target",
    "prefix",
    "decoding.max_new_tokens",
    "decoding.min_new_tokens",
    "capture.units.source_spans",
    "capture.units.source_slices",
    "contrast.source",
    "contrast.prefix",
)

# Reasons of errors that do not depend on the text: options that contradict each other, and the like.
_REASONS_OF_ALL_LINES = ("CONTRADICTION", "REQUIRED", "TOO_MANY", "UNKNOWN_VALUE")

Line = str | InvalidArgumentError
"""The text of a line, or an error that describes what is wrong with its bytes."""


@contextmanager
def open_lines(name: str, *, all_columns: bool = False) -> Generator[Iterator[Line], None, None]:
    """Opens a file and gives an iterator over its lines. The iterator reads only as much as its lines need.

    A line ends at a line feed, with or without a carriage return before the line feed. Nothing else ends a line: a text
    may hold a lone carriage return, a form feed or U+2028, and the output must have as many lines as the input. A byte
    order mark at the start is not part of the text. Of a `.tsv` file, each line is only its first column.

    A line that is not UTF-8 becomes an error, and the next lines follow. A line of more than `MAX_LINE_BYTES` becomes
    an error too, before its end is read; it is never in memory as a whole.

    Args:
        name: The file's name; "-" for standard input.
        all_columns: Of a `.tsv` file, each line is the whole line.

    Raises:
        OSError: The file cannot be opened; or, from the iterator, it cannot be read. Its `filename` is this name.
    """
    if name == "-":
        yield _read_lines(standard_input(), name)
        return
    # The file has no buffer. A thread that waits for a line would hold the buffer's lock while the process ends.
    with open(name, "rb", buffering=0) as file:
        yield _read_lines(file, name, first_column=name.endswith(".tsv") and not all_columns)


def count_lines(name: str) -> int | None:
    """Counts the lines of a file. None if it can be read only once, as standard input."""
    if name == "-" or not Path(name).is_file():
        return None
    count, end = 0, b"\n"
    with Path(name).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            count, end = count + block.count(b"\n"), block[-1:]
    return count + (end != b"\n")


def is_line_error(error: SidelightError) -> bool:
    """Whether only this line fails: because of its text or of its time, or because someone has cancelled the line."""
    if error.status is grpc.StatusCode.INVALID_ARGUMENT:
        if error.reason in _REASONS_OF_ALL_LINES:
            return False
        return any(re.match(rf"{re.escape(field)}($|[.\[])", error.field) for field in _FIELDS_OF_LINES)
    return error.status not in _STATUSES_OF_ALL_LINES


async def next_line(lines: Iterator[Line]) -> Line | None:
    """Returns the next line; None at the end. A thread waits for the line, since the writer of the lines may be slow.

    If the task is cancelled, the thread stays: a read cannot be interrupted, and the command must not wait for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Line | None] = loop.create_future()

    def settle(line: Line | None, error: Exception | None) -> None:
        if future.done():  # cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(line)

    def read() -> None:
        line: Line | None = None
        failure: Exception | None = None
        try:
            line = next(lines, None)
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, line, failure)

    threading.Thread(target=read, daemon=True).start()
    return await future


def standard_input() -> io.RawIOBase | BinaryIO:
    """Returns standard input without a buffer."""
    if not sys.stdin:  # a process may have no standard input
        return io.BytesIO()
    raw: io.RawIOBase | BinaryIO = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return raw


def _read_lines(file: io.RawIOBase | BinaryIO, name: str, *, first_column: bool = False) -> Generator[Line, None, None]:
    for line in _split_lines(_read_blocks(file, name)):
        text = line.partition(b"\t")[0] if first_column else line
        yield _decode_line(text)


def _read_blocks(file: io.RawIOBase | BinaryIO, name: str) -> Generator[bytes, None, None]:
    """Yields the bytes of a file as they come, without a byte order mark at their start."""
    start = b""
    while len(start) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(start):
        if not (block := _read_block(file, name)):  # the end; a second read at the end would wait on a terminal
            yield start
            return
        start += block
    yield start.removeprefix(_BYTE_ORDER_MARK)
    while block := _read_block(file, name):
        yield block


def _read_block(file: io.RawIOBase | BinaryIO, name: str) -> bytes:
    """Reads the next bytes, as soon as there are any. Empty at the end."""
    try:
        while (block := file.read(_BLOCK_BYTES)) is None:  # a non-blocking pipe that is empty for now
            select.select([file], [], [])
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    return block


def _split_lines(blocks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Splits blocks of bytes into lines without their ends.

    Of a line that is too long, it yields only the beginning, as soon as the line is too long, and skips the rest.
    """
    buffer = bytearray()
    is_skipping = False
    for block in blocks:
        *line_ends, rest = block.split(b"\n")
        for part in line_ends:
            if not is_skipping:
                buffer += part[: _MAX_BUFFER_BYTES - len(buffer)]
                yield bytes(buffer.removesuffix(b"\r"))
            buffer.clear()
            is_skipping = False
        if not is_skipping:
            buffer += rest[: _MAX_BUFFER_BYTES - len(buffer)]
            if len(buffer) == _MAX_BUFFER_BYTES:
                yield bytes(buffer)
                buffer.clear()
                is_skipping = True
    if buffer:
        yield bytes(buffer)


def _decode_line(line: bytes) -> Line:
    message = f"longer than {MAX_LINE_BYTES >> 20} MiB, the most that a server takes"
    if len(line) <= MAX_LINE_BYTES:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            message = f"not UTF-8: {error.reason} at byte {error.start}"
    return InvalidArgumentError(message, grpc.StatusCode.INVALID_ARGUMENT)
