"""The texts of a file: a line each. Files and standard input are read alike, as far as their lines are needed."""

from __future__ import annotations

import asyncio
import io
import select
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import grpc

from ..errors import InvalidArgumentError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# A server takes no longer request.
MAX_LINE_BYTES = 4 * 1024**2

# A carriage return that ends the line, or one byte too many: what follows tells nothing new.
_HELD_BYTES = MAX_LINE_BYTES + 2

_BLOCK_BYTES = 64 * 1024

Line = str | InvalidArgumentError
"""A line's text, or what is wrong with its bytes."""


@contextmanager
def open_lines(name: str) -> Generator[Iterator[Line], None, None]:
    """Opens a file and gives its lines; of a `.tsv` their first columns. No more is read than the lines need.

    A line ends at a line feed, with or without a carriage return before it, and at nothing else: a text may hold a lone
    carriage return, a form feed or U+2028, and an output must have as many lines. A byte order mark at the start is no
    text. A line that is not UTF-8 is an error of its own, and so is one of more than `MAX_LINE_BYTES`, which is given
    before its end is read, and never held.

    Args:
        name: The file's name; "-" for standard input.

    Raises:
        OSError: The file cannot be opened, or, from the lines, cannot be read. Its `filename` is this name.
    """
    if name == "-":
        yield _read(_standard_input(), name)
        return
    # Without a buffer: its lock would be taken when the process ends while a thread waits for a line.
    with open(name, "rb", buffering=0) as file:
        yield _read(file, name)


def count_lines(name: str) -> int | None:
    """The number of lines of a file; None where it can be read only once, as standard input."""
    if name == "-" or not Path(name).is_file():
        return None
    count, end = 0, b"\n"
    with Path(name).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            count, end = count + block.count(b"\n"), block[-1:]
    return count + (end != b"\n")


async def next_line(lines: Iterator[Line]) -> Line | None:
    """The next line; None at the end. A thread waits for it, since the writer of the lines may be slow.

    When the wait is cancelled, the thread stays behind: a read cannot be interrupted, and the command must not wait.
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


def _standard_input() -> io.RawIOBase | BinaryIO:
    if not sys.stdin:  # a process may have none at all
        return io.BytesIO()
    raw: io.RawIOBase | BinaryIO = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
    return raw


def _read(file: io.RawIOBase | BinaryIO, name: str) -> Generator[Line, None, None]:
    for line in _split(_blocks(file, name)):
        text = line.partition(b"\t")[0] if name.endswith(".tsv") else line
        yield _decode(text)


def _blocks(file: io.RawIOBase | BinaryIO, name: str) -> Generator[bytes, None, None]:
    """The bytes as they come, without a byte order mark at their start."""
    start = b""
    while len(start) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(start):
        if not (block := _block(file, name)):  # the end, which a terminal would be asked for again
            yield start
            return
        start += block
    yield start.removeprefix(_BYTE_ORDER_MARK)
    while block := _block(file, name):
        yield block


def _block(file: io.RawIOBase | BinaryIO, name: str) -> bytes:
    """The next bytes, as soon as there are any; none at the end."""
    try:
        while (block := file.read(_BLOCK_BYTES)) is None:  # a pipe that does not block, and holds nothing yet
            select.select([file], [], [])
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None
    return block


def _split(blocks: Iterator[bytes]) -> Generator[bytes, None, None]:
    """The lines without their ends. Of one that is too long, only the beginning, as soon as it is too long."""
    held = bytearray()
    is_given = False  # of a line that is too long: the rest is dropped
    for block in blocks:
        *ended, rest = block.split(b"\n")
        for part in ended:
            if not is_given:
                held += part[: _HELD_BYTES - len(held)]
                yield bytes(held.removesuffix(b"\r"))
            held.clear()
            is_given = False
        if not is_given:
            held += rest[: _HELD_BYTES - len(held)]
            if len(held) == _HELD_BYTES:
                yield bytes(held)
                held.clear()
                is_given = True
    if held:
        yield bytes(held)


def _decode(line: bytes) -> Line:
    message = f"longer than {MAX_LINE_BYTES >> 20} MiB, the most that a server takes"
    if len(line) <= MAX_LINE_BYTES:
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            message = f"not UTF-8: {error.reason} at byte {error.start}"
    return InvalidArgumentError(message, grpc.StatusCode.INVALID_ARGUMENT)
