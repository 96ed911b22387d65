"""`sidelight demo`: starts a server on the bundled model, translates some sentences, and stops the server.

It talks to the server over a socket, as any client does.
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
from ..request import AttributeOptions
from ..views import make_console, print_error, print_text, show_waiting
from .attribute import print_attribution

_SENTENCES = (
    "I don't want to be your friend.",
    "Where did you buy that old book?",
    "My sister is learning German this year.",
)

# Seconds until a server is killed. A server needs less time to end its running requests.
_STOP_TIMEOUT = 15.0

_READY_LINE = re.compile(r"^sidelight: serving (\S+) at (\S+)$")


class ServerError(Exception):
    """The server did not start. The message is for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sidelight demo` to a parser."""
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="English sentences to translate")
    parser.add_argument("--no-color", action="store_true", help="shades instead of colours")
    parser.add_argument("--quiet", action="store_true", help="no progress bar while the server starts")


def run(args: argparse.Namespace) -> int:
    """Runs the command. Returns the exit status. Raises SidelightError."""
    console = make_console(no_color=args.no_color)
    # The heads of the last layer look at the word that the model translates next.
    options: AttributeOptions = {"capture": Capture(layers=[2], over_heads="mean"), "timeout": 120}
    console.print("Starting a server on the bundled English-German model ...", style="dim")
    try:
        with bundled_server(quiet=args.quiet) as (name, address), Client(address, tls=False, token="") as client:
            captured = "cross-attention of the last layer, mean of its heads"
            console.print(f"{name} at {address}: {captured}\n", style="dim")
            for text in args.texts or _SENTENCES:
                print_text(console, text, style="bold")
                attribution = print_attribution(client, text, options, console)
                first = attribution.usage.time_to_first_step * 1000
                total = attribution.usage.total_time * 1000
                console.print(f"first step after {first:.0f} ms, all after {total:.0f} ms\n", style="dim")
    except ServerError as error:
        print_error(str(error))
        return 1
    return 0


@contextmanager
def bundled_server(*, quiet: bool = False) -> Generator[tuple[str, str], None, None]:
    """Runs a server on the bundled model and a free port. Gives the model's name and address.

    Shows on a terminal that the server starts, unless `quiet`. Raises ServerError.
    """
    sibling = Path(sys.executable).with_name("sidelight")
    command = str(sibling) if sibling.exists() else shutil.which("sidelight")
    if command is None:
        raise ServerError("the sidelight command is not installed beside this Python")
    # The log goes to a file, because this process would not read a pipe while the server runs.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        _forwarding_signals() as forwarder,
    ):
        process = None
        try:
            with _postponing_interrupts():
                process = subprocess.Popen(
                    [command, "serve", "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=log, text=True
                )
            forwarder.start(process)
            with show_waiting("starting the server, which compiles at its first start", quiet=quiet):
                ready = await_server(process, log)
            yield ready
        finally:
            if process is not None:
                with process:
                    stop_server(process)


def await_server(process: subprocess.Popen[str], log: IO[str]) -> tuple[str, str]:
    """Waits until a `sidelight serve` process serves. Returns the model's name and the address.

    Args:
        process: The process. Its standard output must be a pipe, and its standard error the file `log`.
        log: The file.

    Raises:
        ServerError: The process has ended. The message is the last line of its log.
    """
    assert process.stdout is not None
    for line in process.stdout:
        if ready := _READY_LINE.match(line):
            return ready[1], ready[2]
    # The output has ended without the line. The log says why.
    log.seek(0)
    last_lines = log.read().strip().splitlines()[-1:] or ["the server ended at once"]
    raise ServerError(last_lines[0].removeprefix("sidelight: "))


def stop_server(process: subprocess.Popen[str]) -> None:
    """Stops a server. A server that does not stop in time is killed."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def _postponing_interrupts() -> Generator[None, None, None]:
    """Raises the KeyboardInterrupt of a Ctrl-C at the end: within Popen, it would leave a process that nobody ends."""
    is_main = threading.current_thread() is threading.main_thread()  # other threads cannot set signal handlers
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if received:
            raise KeyboardInterrupt


class _SignalForwarder:
    """Ends a process at SIGTERM, so that the process does not run on alone, and at SIGHUP, of a closed terminal.

    The signal handlers raise no exception: an exception at an arbitrary place could leave a lock of gRPC locked.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._process: subprocess.Popen[str] | None = None

    def start(self, process: subprocess.Popen[str]) -> None:
        """Takes the process that has started. A signal may have come before."""
        self._process = process
        if self.received:
            process.terminate()

    def handle_sigterm(self, number: int, _: object) -> None:
        """Handles SIGTERM."""
        self.received.append(number)
        if self._process is not None:
            self._process.terminate()

    def handle_sighup(self, _number: int, _: object) -> None:
        """Handles SIGHUP as SIGTERM, by the handler that SIGTERM has at this time: a page may have set its own."""
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _forwarding_signals() -> Generator[_SignalForwarder, None, None]:
    """Handles SIGTERM and SIGHUP by a forwarder. This program then ends with the status of SIGTERM."""
    forwarder = _SignalForwarder()
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set signal handlers
        yield forwarder
        return
    previous = {signal.SIGTERM: signal.signal(signal.SIGTERM, forwarder.handle_sigterm)}
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) == signal.SIG_DFL:  # under nohup it stays ignored
        previous[hang_up] = signal.signal(hang_up, forwarder.handle_sighup)
    try:
        yield forwarder
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if forwarder.received:
            raise SystemExit(128 + forwarder.received[0])
