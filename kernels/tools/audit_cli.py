"""`sidelight kernels audit`: compiles and checks the kernels for GPUs that need not be there.

The module has the options; `audit` has the checks, and `audit_report` the output. torch and Triton are imported only
when the command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

_WIDTH = 160  # of the table where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight kernels audit`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write a table there too, of a line for each kernel"
    )
    parser.add_argument(
        "--target",
        action="append",
        metavar="TARGET",
        help="a kind of GPU, such as sm_90 or gfx942; may be given several times; without it, sm_80, sm_90, sm_100 and "
        "gfx942",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where compiled kernels are kept; without it, all are compiled anew"
    )


def run(args: argparse.Namespace) -> int:
    """Audits all cases. Returns the exit status: 1 where there are problems."""
    from . import audit
    from .audit_report import print_rooflines, report
    from .cases import all_cases
    from .cross_compile import TARGETS

    targets: Sequence[str] = list(dict.fromkeys(args.target or audit.TARGETS))
    for target in targets:
        if target not in TARGETS:
            print(f"sidelight: --target: must be one of {', '.join(TARGETS)}, not {target!r}", file=sys.stderr)
            return 1
    console = Console(highlight=False, markup=False, emoji=False)  # names of cases may have brackets
    progress = Console(stderr=True, quiet=args.quiet, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    started = time.perf_counter()
    try:
        for file in (args.json, args.markdown):
            if file:
                file.write_text("")  # fails now rather than after minutes of compiling
        with tempfile.TemporaryDirectory(prefix="sidelight-audit-") as fresh, progress.status("") as status:
            audits = audit.audit(all_cases, targets, args.cache or Path(fresh), _num_cores(), status.update)
        print_rooflines(console)
        return report(audits, console, time.perf_counter() - started, args.json, args.markdown)
    except OSError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
