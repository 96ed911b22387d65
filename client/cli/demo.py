"""`sidelight demo`: a server on the bundled model, a few translations with their attention, and the end.

It meets the server as any client does: over a socket.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..client import Client
from ..parameters import Capture
from ..request import Options
from ..views.terminal import make_console, print_error, print_text
from .attribute import show

_SENTENCES = (
    "I don't want to be your friend.",
    "Where did you buy that old book?",
    "My sister is learning German this year.",
)

# Longer than the server takes to let go of running requests.
_GRACE = 15.0

_READY = re.compile(r"^sidelight: serving (\S+) at (\S+)$")


class ServerError(Exception):
    """The server did not come up. The message is for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight demo`."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="English sentences of your own")
    parser.add_argument("--no-color", action="store_true", help="shades instead of colours")


def run(args: argparse.Namespace) -> int:
    """Runs the demonstration. Returns the exit status. Raises SidelightError."""
    console = make_console(no_color=args.no_color)
    # The last layer's heads look at the word that is about to be translated.
    options: Options = {"capture": Capture(layers=[2], over_heads="mean"), "timeout": 120}
    console.print("Starting a server on the bundled English-German model ...", style="dim")
    try:
        with bundled_server() as (name, address), Client(address) as client:
            what = "cross-attention of the last layer, mean of its heads"
            console.print(f"{name} at {address}: {what}\n", style="dim")
            for text in args.texts or _SENTENCES:
                print_text(console, text, style="bold")
                attribution = show(client, text, options, console)
                first = attribution.usage.time_to_first_step * 1000
                total = attribution.usage.total_time * 1000
                console.print(f"first step after {first:.0f} ms, all after {total:.0f} ms\n", style="dim")
    except ServerError as error:
        print_error(str(error))
        return 1
    return 0


@contextmanager
def bundled_server() -> Generator[tuple[str, str], None, None]:
    """A server on the bundled model and a free port; gives the model's name and the address. Raises ServerError."""
    beside = Path(sys.executable).with_name("sidelight")
    command = str(beside) if beside.exists() else shutil.which("sidelight")
    if command is None:
        raise ServerError("the sidelight command is not installed beside this Python")
    # The log goes to a file: nobody would empty a pipe while the server runs.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [command, "serve", "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=log, text=True
        )
        with process, _passing_on_sigterm(process):
            try:
                yield await_server(process, log)
            finally:
                stop_server(process)


def await_server(process: subprocess.Popen[str], log: IO[str]) -> tuple[str, str]:
    """Waits until a `sidelight serve` process serves; gives the model's name and the address. Raises ServerError.

    Its output must be a pipe, and its log go to `log`.
    """
    assert process.stdout is not None
    for line in process.stdout:
        if ready := _READY.match(line):
            return ready[1], ready[2]
    # The output has ended without the line: the server has said in its log why.
    log.seek(0)
    last = log.read().strip().splitlines()[-1:] or ["the server ended at once"]
    raise ServerError(last[0].removeprefix("sidelight: "))


def stop_server(process: subprocess.Popen[str]) -> None:
    """Ends a server, in good order if it can."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[str]) -> Generator[None, None, None]:
    """Lets SIGTERM end the process too, so that it is not left behind; then this program ends as one that got it.

    The handler raises nothing itself: an exception at any odd place may leave a lock of gRPC's locked.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    told: list[int] = []

    def end(number: int, _: object) -> None:
        told.append(number)
        process.terminate()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if told:
            raise SystemExit(128 + told[0])
