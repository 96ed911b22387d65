"""The page of `sidelight ui`, served by the command in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cli_process import start


@contextmanager
def serving_page(address: str) -> Iterator[str]:
    """Runs `sidelight ui` before a server. Gives the address of the page."""
    process = start("ui", "--address", address, "--listen", "127.0.0.1:0")
    try:
        line = process.stdout.readline()
        assert "page at" in line, process.communicate()
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=60)
