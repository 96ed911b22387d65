"""The process of the command line: runs a command, and returns its exit status.

At its top, this module imports only modules that Python itself has imported already. It imports all others after Ctrl-C
is handled.
"""

from __future__ import annotations

import io
import os
import sys

from .interruption import EXIT_STATUS, InterruptHandler, report_interruption

TYPE_CHECKING = False  # the same as typing.TYPE_CHECKING, but importing typing takes time
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments. Without them: the arguments of this process, and Ctrl-C is handled until the process ends.

    Returns:
        The exit status: 0 for success, 1 for a failure, 2 for a wrong command line, 130 after Ctrl-C.
    """
    try:
        with InterruptHandler(owns_process=argv is None) as interrupt_handler:
            from .commands import make_parser

            # Tokens may be in any script, also in one that the terminal cannot show.
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="replace")
            args = make_parser().parse_args(argv)
            interrupt_handler.begin()
            return _run(args)
    except KeyboardInterrupt:
        report_interruption()
        return EXIT_STATUS


def _run(args: argparse.Namespace) -> int:
    from ..errors import SidelightError, UnavailableError, describe_error
    from ..views import print_error

    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except UnavailableError as error:
        # `sidelight demo` has no argument for an address: its own server is gone.
        where = getattr(args, "address", "its address")
        what = where if error.reason == "TLS_FAILED" else f"no server answers at {where}"
        print_error(f"{what}: {describe_error(error)}")
        return 1
    except SidelightError as error:
        print_error(describe_error(error))
        return 1
    except BrokenPipeError:  # the reader of the output has closed it
        # Otherwise Python would report the closed pipe again, when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
