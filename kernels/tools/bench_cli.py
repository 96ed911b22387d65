"""`sidelight kernels bench`: how fast the kernels are on this machine's GPU.

Knows the options and what is printed; how it is timed is in `bench`. Imported whatever is installed, so torch and
Triton come in only when the command runs.
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

_WIDTH = 160  # of the table where nobody's screen says how wide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `sidelight kernels bench`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the times there too, in seconds")


def run(args: argparse.Namespace) -> int:
    """Times all variants on the current GPU. Returns the exit status."""
    import torch

    if not torch.cuda.is_available():
        print("sidelight: torch finds no GPU on this machine: there is nothing to time", file=sys.stderr)
        return 1
    from triton import knobs

    if knobs.runtime.interpret:
        print("sidelight: TRITON_INTERPRET is set: times would be the interpreter's", file=sys.stderr)
        return 1
    from .bench import median
    from .cases import variants

    return report(variants(large=True), "cuda", median, args.json)


def report(variants: Iterable[KernelCase], device: str, timer: Timer, file: Path | None) -> int:
    """Times variants, and prints and writes what was found. Returns the exit status."""
    from .bench import machine, measure, table, write

    try:
        if file:
            file.write_text("")  # better to fail now than after minutes of timing
        console = Console(highlight=False, markup=False, emoji=False)  # names are what they are
        if not console.is_terminal:
            console.width = _WIDTH
        found = machine(device)
        for name, value in found.items():
            console.print(f"{name}: {value}")
        timings: list[Timing] = []
        with console.status("") as status:
            for variant in variants:
                status.update(f"{variant.kernel}, {variant.case}")
                timings.append(measure(variant, device, timer))
                if file:  # after each variant: what is measured stays, whatever ends this
                    write(file, found, timings)
        console.print()
        console.print(table(timings))
        console.print("\nIn parentheses how many times the kernel's own time that is.")
    except OSError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1
    return 0
