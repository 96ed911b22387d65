"""Pseudo-terminals: what a program shows people, as text."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Terminal:
    """A terminal. `end` is for the program that writes; `text` is what has come so far, with its control sequences."""

    def __init__(self) -> None:
        self._controller, self.end = pty.openpty()
        self._output = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last writer has closed the terminal
            while block := os.read(self._controller, 65536):
                self._output += block

    def close(self) -> None:
        """Closes the terminal here, and waits until its other writers have closed it too."""
        os.close(self.end)
        self._reader.join(60)
        os.close(self._controller)

    @property
    def text(self) -> str:
        return self._output.decode().replace("\r\n", "\n")

    @property
    def plain_text(self) -> str:
        """The text without control sequences, each carriage return as the end of a line."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).replace("\r", "\n")


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """Gives a terminal, and closes it at the end of the block. Its text stays."""
    terminal = Terminal()
    try:
        yield terminal
    finally:
        terminal.close()
