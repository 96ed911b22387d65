"""The texts of a file: a line each. Files and standard input are read alike."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import grpc

from .errors import InvalidArgumentError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Line = str | InvalidArgumentError
"""A line's text, or what is wrong with its bytes."""


def read_lines(name: str) -> list[Line]:
    """The lines of a file; of a `.tsv` their first columns.

    A line ends at a line feed, with or without a carriage return before it, and at nothing else: a text may hold a lone
    carriage return, a form feed or U+2028, and an output must have as many lines. A byte order mark at the start is no
    text. A line that is not UTF-8 is an error of its own.

    Args:
        name: The file's name; "-" for standard input.

    Raises:
        OSError: The file cannot be read.
    """
    # A process may have no standard input at all.
    standard_input = sys.stdin.buffer if sys.stdin else io.BytesIO()
    data = standard_input.read() if name == "-" else Path(name).read_bytes()
    lines = re.split(rb"\r?\n", data.removeprefix(_BYTE_ORDER_MARK))
    if not lines[-1]:  # behind the last line's end, or all there is
        lines.pop()
    if name.endswith(".tsv"):
        lines = [line.partition(b"\t")[0] for line in lines]
    return [_decode(line) for line in lines]


def _decode(line: bytes) -> Line:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        message = f"not UTF-8: {error.reason} at byte {error.start}"
        return InvalidArgumentError(message, grpc.StatusCode.INVALID_ARGUMENT)
