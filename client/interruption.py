"""Ctrl-C on the command line: one line and exit status 130 at any moment, and never a traceback.

While a command runs, Ctrl-C raises KeyboardInterrupt, so that what the command has begun is ended in order. Before and
after, while modules are imported and the interpreter ends, there is nothing to end in order, and Ctrl-C ends the
process at once: an exception would come out of whatever happens to run. This module imports nothing that takes time.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import NoReturn

EXIT_STATUS = 130  # 128 + SIGINT, as shells have it


def report() -> None:
    """Says on standard error that the command was interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, b"sidelight: interrupted\n")


@contextlib.contextmanager
def interruptible(*, whole_process: bool) -> Generator[Callable[[], None], None, None]:
    """Handles Ctrl-C around a command. Gives a function that says that the command begins.

    Until then, and from the end of the block on, Ctrl-C ends the process; in between, it raises KeyboardInterrupt.

    Args:
        whole_process: Whether this process is the command's. Otherwise Ctrl-C is left to the caller.
    """
    # Where SIGINT is ignored, as behind nohup, it stays ignored.
    if not whole_process or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: None
        return

    def begin() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, _exit_at_once)
    sys.unraisablehook = _unraisable
    # The interpreter's own end, behind all that is registered later, takes no more than a moment: the work is done.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        yield begin
    except KeyboardInterrupt:
        # The command has ended in order. What it has left half made would only complain when it is collected.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _exit_at_once()
    finally:
        signal.signal(signal.SIGINT, _exit_at_once)


def _exit_at_once(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    report()
    os._exit(EXIT_STATUS)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Ends the process where KeyboardInterrupt came out of what cannot raise, such as a finalizer; it would be lost."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _exit_at_once()
    sys.__unraisablehook__(unraisable)
