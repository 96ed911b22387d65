"""Ctrl-C on the command line: one line and exit status 130 from the moment that Python runs `main`, and no traceback.

While a command runs, Ctrl-C raises KeyboardInterrupt, so that what the command has begun is ended in order. Before and
after, while modules are imported and the interpreter ends, there is nothing to end in order, and Ctrl-C ends the
process at once: an exception would come out of whatever happens to run. This module imports nothing that takes time:
until it handles Ctrl-C, Ctrl-C is Python's.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    import signal
    from types import FrameType, TracebackType
    from typing import NoReturn

    from typing_extensions import Self
else:
    import _signal as signal  # what signal is made of: that makes enums of it, which takes time

EXIT_STATUS = 130  # 128 + SIGINT, as shells have it


def report() -> None:
    """Says on standard error that the command was interrupted."""
    try:
        os.write(2, b"sidelight: interrupted\n")
    except OSError:  # standard error is closed
        return


class Interruption:
    """Handles Ctrl-C around a command, in a `with` block.

    Until the command begins, and from the end of the block on, Ctrl-C ends the process; in between, it raises
    KeyboardInterrupt, which ends the process when it arrives at the end of the block.
    """

    def __init__(self, *, whole_process: bool) -> None:
        """Args: whole_process: Whether this process is the command's. Otherwise Ctrl-C is left to the caller."""
        # Where SIGINT is ignored, as behind nohup, it stays ignored.
        self._is_ours = whole_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def begin(self) -> None:
        """Says that the command begins."""
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> Self:
        if self._is_ours:
            signal.signal(signal.SIGINT, _exit_at_once)
            sys.unraisablehook = _unraisable
            # The interpreter's own end, behind all that is registered later, takes a moment only: the work is done.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_ours:
            return
        signal.signal(signal.SIGINT, _exit_at_once)
        if isinstance(error, KeyboardInterrupt):
            # The command has ended in order. What it has left half made would only complain when it is collected.
            try:
                sys.stdout.flush()
            finally:
                _exit_at_once()


def _exit_at_once(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    report()
    os._exit(EXIT_STATUS)


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Ends the process where KeyboardInterrupt came out of what cannot raise, such as a finalizer; it would be lost."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _exit_at_once()
    sys.__unraisablehook__(unraisable)
