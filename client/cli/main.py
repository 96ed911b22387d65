"""The command line: from a process to a command and its exit status.

Imports only what Python has imported before it: whatever else is imported when Ctrl-C is understood already.
"""

from __future__ import annotations

import io
import os
import sys

from .interruption import EXIT_STATUS, Interruption, report

TYPE_CHECKING = False  # as in typing, which takes time to import
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Its arguments; those of this process without them, and Ctrl-C is then handled to the process's end.

    Returns:
        The exit status: 0 for success, 1 for a failure, 2 for a wrong command line, 130 after Ctrl-C.
    """
    try:
        with Interruption(whole_process=argv is None) as interruption:
            from .commands import make_parser

            # Tokens may be in any script, whatever the terminal can show.
            for stream in (sys.stdout, sys.stderr):
                if isinstance(stream, io.TextIOWrapper):
                    stream.reconfigure(errors="replace")
            args = make_parser().parse_args(argv)
            interruption.begin()
            return _run(args)
    except KeyboardInterrupt:
        report()
        return EXIT_STATUS


def _run(args: argparse.Namespace) -> int:
    from ..errors import SidelightError, UnavailableError, describe
    from ..views.terminal import print_error

    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except UnavailableError as error:
        # Demo has no address of its own: its server is gone.
        where = getattr(args, "address", "its address")
        print_error(f"no server answers at {where}: {describe(error)}")
        return 1
    except SidelightError as error:
        print_error(describe(error))
        return 1
    except BrokenPipeError:  # whoever read our output has had enough
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
