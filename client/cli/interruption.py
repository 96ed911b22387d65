"""Handles Ctrl-C on the command line: one line and exit status 130, and no traceback, once Python runs `main`.

While a command runs, Ctrl-C raises KeyboardInterrupt, and the command cleans up. Before and after, while Python imports
modules or ends, there is nothing to clean up, and an exception could come out of any code that happens to run. There,
Ctrl-C ends the process at once. This module imports nothing that takes time: until its handler is set, Python handles
Ctrl-C.
"""

from __future__ import annotations

import atexit
import os
import sys

TYPE_CHECKING = False  # the same as typing.TYPE_CHECKING, but importing typing takes time
if TYPE_CHECKING:
    import signal
    from types import FrameType, TracebackType
    from typing import NoReturn

    from typing_extensions import Self
else:
    import _signal as signal  # the C module behind signal, which makes enums of its numbers, and that takes time

EXIT_STATUS = 130  # 128 + SIGINT, the shells' convention


def report_interruption() -> None:
    """Prints on standard error that the command was interrupted."""
    try:
        os.write(2, b"sidelight: interrupted\n")
    except OSError:  # standard error is closed
        return


class InterruptHandler:
    """Handles Ctrl-C around a command, in a `with` block of the main thread.

    Before the command begins, and after the end of the block, Ctrl-C ends the process. While the command runs, Ctrl-C
    raises KeyboardInterrupt; the end of the block catches it and ends the process.
    """

    def __init__(self, *, owns_process: bool) -> None:
        """Creates the handler.

        Args:
            owns_process: Whether the process has no purpose but this command. Otherwise the caller handles Ctrl-C.
        """
        # If SIGINT is ignored, for example under nohup, it stays ignored.
        self._handles_signals = owns_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def begin(self) -> None:
        """Marks the begin of the command: from now on, Ctrl-C raises KeyboardInterrupt."""
        if self._handles_signals:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __enter__(self) -> Self:
        if self._handles_signals:
            signal.signal(signal.SIGINT, _exit_at_once)
            sys.unraisablehook = _handle_unraisable
            # This function runs after all exit functions that are registered later. What is left of the interpreter's
            # end takes only a moment, and the work is done.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handles_signals:
            return
        signal.signal(signal.SIGINT, _exit_at_once)
        if isinstance(error, KeyboardInterrupt):
            # The command has cleaned up. Objects that it has left incomplete would only print warnings when they are
            # collected.
            try:
                sys.stdout.flush()
            finally:
                _exit_at_once()


def _exit_at_once(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    report_interruption()
    os._exit(EXIT_STATUS)


def _handle_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Ends the process if KeyboardInterrupt is raised in code that cannot raise, such as a finalizer.

    Otherwise Python would print the exception and go on.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _exit_at_once()
    sys.__unraisablehook__(unraisable)
