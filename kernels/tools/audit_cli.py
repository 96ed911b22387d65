"""`sidelight kernels audit`: whether the kernels have become what they should be, on GPUs that need not be there.

Knows the options and what is printed; what is asked of a kernel is in `audit`. Imported whatever is installed, so torch
and Triton come in only when the command runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .audit import Audited, Built, Failure

_WIDTH = 160  # of the table where nobody's screen says how wide


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
    """Audits all variants. Returns the exit status: 1 where anything is not as it should be."""
    from . import audit
    from .cases import variants
    from .cross_compile import TARGETS

    targets: Sequence[str] = list(dict.fromkeys(args.target or audit.TARGETS))
    for target in targets:
        if target not in TARGETS:
            print(f"sidelight: --target: must be one of {', '.join(TARGETS)}, not {target!r}", file=sys.stderr)
            return 1
    console = Console(highlight=False, markup=False, emoji=False)  # cases may have brackets
    if not console.is_terminal:
        console.width = _WIDTH
    started = time.perf_counter()
    try:
        for file in (args.json, args.markdown):
            if file:
                file.write_text("")  # better to fail now than after minutes of compiling
        with tempfile.TemporaryDirectory(prefix="sidelight-audit-") as fresh, console.status("") as status:
            audited = audit.audit(variants, targets, args.cache or Path(fresh), _cores(), status.update)
        tell_rooflines(console)
        return report(audited, console, time.perf_counter() - started, args.json, args.markdown)
    except OSError as error:
        print(f"sidelight: {error}", file=sys.stderr)
        return 1


def tell_rooflines(console: Console) -> None:
    """Prints how long each variant must take on an H100, at the sizes of the bench."""
    from .cases import variants
    from .roofline import H100, rooflines

    made = Table(box=None, pad_edge=False, header_style="bold", title=f"On paper: {H100.name}", title_justify="left")
    for name in ("kernel", "case"):
        made.add_column(name)
    for name in ("MB", "Gflop", "us by memory", "us by arithmetic", "bound", "us of two passes"):
        made.add_column(name, justify="right")
    for each in rooflines(variants(large=True)):
        variant = each.variant
        two = f"{variant.second_pass_bytes / H100.bytes * 1e6:.1f}" if variant.second_pass_bytes else ""
        made.add_row(
            variant.kernel,
            variant.case,
            f"{variant.least_bytes / 1e6:.1f}",
            f"{variant.flops / 1e9:.1f}",
            f"{each.memory_seconds * 1e6:.1f}",
            f"{each.arithmetic_seconds * 1e6:.1f}",
            each.bound,
            two,
        )
    console.print(made)
    console.print(
        "\nThe least bytes, at full bandwidth; the matrix products, at the full rate of tensor cores. Two passes are "
        "fused attention,\nand then queries and keys once more for the row.\n"
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def report(
    audited: Sequence[Audited], console: Console, seconds: float, json_file: Path | None, markdown_file: Path | None
) -> int:
    """Prints and writes what was found. Returns the exit status."""
    from .audit import problems

    wrong = [line for each in audited for line in problems(each)]
    console.print(table(audited))
    console.print(
        "\nRegisters are a thread's. Warps are how many one multiprocessor holds, of its most. Loads and stores are of "
        "global memory, from\nthe narrowest to the widest, in bits. Bytes are those read and written, as a multiple of "
        "the fewest possible."
    )
    if json_file:
        text = json.dumps(as_json(audited, wrong), indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    if markdown_file:
        markdown_file.write_text(as_markdown(audited), encoding="utf-8")
    console.print()
    for line in wrong:
        console.print(f"FAILED  {line}", soft_wrap=True)
    count = sum(len(each.built) for each in audited)
    found = f"{len(wrong)} failed" if wrong else "all as it should be"
    console.print(f"{len(audited)} variants, {count} times compiled, in {seconds:.0f} s: {found}")
    return 1 if wrong else 0


def table(audited: Sequence[Audited]) -> Table:
    """A line for each launch of each variant on each target."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "case", "target", "function"):
        made.add_column(name)
    for name in ("registers", "spilled", "shared", "warps", "loads", "stores"):
        made.add_column(name, justify="right")
    made.add_column("tensor cores")
    made.add_column("bytes", justify="right")
    for each in audited:
        moved = _moved(each)
        # What is said of the variant as a whole, once.
        start, moved = (each.variant.kernel, each.variant.case), _moved(each)
        for target, built in _lines(each):
            made.add_row(*start, target, built.name if built else "", *_figures(built), moved)
            start, moved = ("", ""), ""
    return made


def _lines(each: Audited) -> Iterator[tuple[str, Built | None]]:
    for target, launches in each.built.items():
        if isinstance(launches, list):
            for launch in launches:
                yield target, launch
        else:
            yield target, None


def _figures(built: Built | None) -> tuple[str, ...]:
    if not built:
        return ("does not compile", *[""] * 6)
    code = built.code
    return (
        str(code.registers),
        str(code.spilled),
        f"{built.shared:,}",
        f"{built.resident_warps}/{built.most_warps}",
        _widths(code.loads),
        _widths(code.stores),
        ", ".join(f"{count} {kind}" for kind, count in sorted(code.tensor_cores.items())),
    )


def _widths(counted: Mapping[int, int]) -> str:
    """Such as 32-128."""
    return "-".join(str(bits) for bits in sorted({min(counted), max(counted)})) if counted else ""


def _moved(each: Audited) -> str:
    from .audit import Failure

    if isinstance(each.traffic, Failure):
        return "does not run"
    return f"{(each.traffic.loaded + each.traffic.stored) / each.variant.least_bytes:.3f}×"


def as_json(audited: Sequence[Audited], wrong: Sequence[str]) -> dict[str, Any]:
    """All figures, and what is wrong."""
    from .audit import Failure

    variants: list[dict[str, Any]] = []
    for each in audited:
        built: dict[str, Any] = {}
        for target, launches in each.built.items():
            if isinstance(launches, Failure):
                built[target] = {"error": launches.message}
            else:
                built[target] = [{**launch._asdict(), "code": launch.code._asdict()} for launch in launches]
        variants.append(
            {
                "kernel": each.variant.kernel,
                "case": each.variant.case,
                "asked": {
                    "load_bits": each.variant.load_bits,
                    "tensor_cores": each.variant.tensor_cores,
                    "moved_at_most": each.variant.moved_at_most,
                },
                "least_bytes": each.variant.least_bytes,
                "traffic": {"error": each.traffic.message}
                if isinstance(each.traffic, Failure)
                else each.traffic._asdict(),
                "built": built,
            }
        )
    return {"variants": variants, "wrong": list(wrong)}


def as_markdown(audited: Sequence[Audited]) -> str:
    """A line for each launch of each variant, and a column for each target."""
    targets = list(dict.fromkeys(target for each in audited for target in each.built))
    lines = [
        "| " + " | ".join(["kernel", "case", "bytes", *targets]) + " |",
        "|---|---|--:|" + "---|" * len(targets),
    ]
    for each in audited:
        start = (each.variant.kernel, each.variant.case, _moved(each))
        for place in range(max(len(built) if isinstance(built, list) else 1 for built in each.built.values())):
            cells = [_cell(each.built[target], place) for target in targets]
            lines.append("| " + " | ".join([*start, *cells]) + " |")
            start = ("", "", "")
    return "\n".join(lines) + "\n"


def _cell(built: list[Built] | Failure, place: int) -> str:
    """What a launch of a variant has become on one target, in a few words."""
    if not isinstance(built, list):
        return "does not compile"
    registers, spilled, _, warps, loads, stores, tensor_cores = _figures(built[place])
    said = [f"{registers} registers", f"{warps} warps", f"{loads or 'no'} in", f"{stores or 'no'} out"]
    if built[place].code.spilled:
        said.append(f"spilled {spilled}")
    if tensor_cores:
        said.append(tensor_cores)
    return ", ".join(said)
