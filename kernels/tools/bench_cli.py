"""`sidelight kernels bench`: times the kernels on this machine's GPU.

The module has the options and the output; `bench` takes the times. torch and Triton are imported only when the command
runs.
"""
# Triton comes without types.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from .bench import Timer, Timing
    from .cases import KernelCase

_WIDTH = 160  # of the table where the output is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight kernels bench`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there too, in seconds")


def run(args: argparse.Namespace) -> int:
    """Times all cases on the current GPU. Returns the exit status."""
    import torch

    if not torch.cuda.is_available():
        print("sidelight: torch finds no GPU on this machine: there is nothing to time", file=sys.stderr)
        return 1
    from triton import knobs

    if knobs.runtime.interpret:
        print("sidelight: TRITON_INTERPRET is set: times would be the interpreter's", file=sys.stderr)
        return 1
    from .bench import median_time
    from .cases import all_cases

    return report(all_cases(large=True), "cuda", median_time, args.json, quiet=args.quiet)


def report(cases: Iterable[KernelCase], device: str, timer: Timer, file: Path | None, *, quiet: bool = False) -> int:
    """Times cases, and prints and writes the times. Shows on a terminal what it times, unless `quiet`.

    Returns the exit status.
    """
    from .bench import machine, measure, table, write

    try:
        if file:
            file.write_text("")  # fails now rather than after minutes of timing
        console = Console(highlight=False, markup=False, emoji=False)  # names may have brackets
        if not console.is_terminal:
            console.width = _WIDTH
        facts = machine(device)
        for name, value in facts.items():
            console.print(f"{name}: {value}")
        timings: list[Timing] = []
        with Console(stderr=True, quiet=quiet, markup=False, emoji=False).status("") as status:
            for case in cases:
                status.update(f"{case.kernel}, {case.name}")
                timings.append(measure(case, device, timer))
                if file:  # after each case, so that the times so far stay, whatever ends the command
                    write(file, facts, timings)
        console.print()
        console.print(table(timings))
        console.print("\nIn parentheses how many times the kernel's own time that is.")
    except OSError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    return 0
