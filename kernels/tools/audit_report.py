"""The output of `sidelight kernels audit`: rooflines and figures as tables, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .audit import Audit, CompiledLaunch, Failure


def print_rooflines(console: Console) -> None:
    """Prints the least time of each case on an H100, at the sizes of the bench."""
    from .cases import all_cases
    from .roofline import H100, rooflines

    rows = Table(box=None, pad_edge=False, header_style="bold", title=f"On paper: {H100.name}", title_justify="left")
    for name in ("kernel", "case"):
        rows.add_column(name)
    for name in ("MB", "Gflop", "us by memory", "us by arithmetic", "bound", "us of two passes"):
        rows.add_column(name, justify="right")
    for roofline in rooflines(all_cases(large=True)):
        case = roofline.case
        two = f"{case.second_pass_bytes / H100.bytes * 1e6:.1f}" if case.second_pass_bytes else ""
        rows.add_row(
            case.kernel,
            case.name,
            f"{case.least_bytes / 1e6:.1f}",
            f"{case.flops / 1e9:.1f}",
            f"{roofline.memory_seconds * 1e6:.1f}",
            f"{roofline.arithmetic_seconds * 1e6:.1f}",
            roofline.bound,
            two,
        )
    console.print(rows)
    console.print(
        "\nThe least bytes, at full bandwidth; the matrix products, at the full rate of tensor cores. Two passes are "
        "fused attention,\nand then queries and keys once more for the row.\n"
    )


def report(
    audits: Sequence[Audit], console: Console, seconds: float, json_file: Path | None, markdown_file: Path | None
) -> int:
    """Prints and writes the figures and the problems. Returns the exit status."""
    from .audit import find_problems

    problems = [problem for audit in audits for problem in find_problems(audit)]
    console.print(table(audits))
    console.print(
        "\nRegisters are a thread's. Warps are how many one multiprocessor holds, of its most. Loads and stores are of "
        "global memory, from\nthe narrowest to the widest, in bits. Bytes are those read and written, as a multiple of "
        "the fewest possible."
    )
    if json_file:
        text = json.dumps(as_json(audits, problems), indent=2, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")
    if markdown_file:
        markdown_file.write_text(as_markdown(audits), encoding="utf-8")
    console.print()
    for problem in problems:
        console.print(f"FAILED  {problem}", soft_wrap=True)
    count = sum(len(audit.launches) for audit in audits)
    summary = f"{len(problems)} failed" if problems else "all as it should be"
    console.print(f"{len(audits)} variants, {count} times compiled, in {seconds:.0f} s: {summary}")
    return 1 if problems else 0


def table(audits: Sequence[Audit]) -> Table:
    """Returns a table with a line for each launch of each case on each target."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kernel", "case", "target", "function"):
        rows.add_column(name)
    for name in ("registers", "spilled", "shared", "warps", "loads", "stores"):
        rows.add_column(name, justify="right")
    rows.add_column("tensor cores")
    rows.add_column("bytes", justify="right")
    for audit in audits:
        # The figures of the case as a whole, in its first line.
        start, moved = (audit.case.kernel, audit.case.name), _moved(audit)
        for target, launch in _lines(audit):
            rows.add_row(*start, target, launch.name if launch else "", *_figures(launch), moved)
            start, moved = ("", ""), ""
    return rows


def _lines(audit: Audit) -> Iterator[tuple[str, CompiledLaunch | None]]:
    for target, launches in audit.launches.items():
        if isinstance(launches, list):
            for launch in launches:
                yield target, launch
        else:
            yield target, None


def _figures(launch: CompiledLaunch | None) -> tuple[str, ...]:
    if not launch:
        return ("does not compile", *[""] * 6)
    code = launch.code
    return (
        str(code.registers),
        str(code.spilled),
        f"{launch.shared:,}",
        f"{launch.resident_warps}/{launch.most_warps}",
        _widths(code.loads),
        _widths(code.stores),
        ", ".join(f"{count} {kind}" for kind, count in sorted(code.tensor_cores.items())),
    )


def _widths(counts: Mapping[int, int]) -> str:
    """The narrowest and the widest access, such as 32-128."""
    return "-".join(str(bits) for bits in sorted({min(counts), max(counts)})) if counts else ""


def _moved(audit: Audit) -> str:
    from .audit import Failure

    if isinstance(audit.traffic, Failure):
        return "does not run"
    return f"{(audit.traffic.loaded + audit.traffic.stored) / audit.case.least_bytes:.3f}×"


def as_json(audits: Sequence[Audit], problems: Sequence[str]) -> dict[str, Any]:
    """Returns all figures and problems for JSON."""
    from .audit import Failure

    variants: list[dict[str, Any]] = []
    for audit in audits:
        case = audit.case
        built: dict[str, Any] = {}
        for target, launches in audit.launches.items():
            if isinstance(launches, Failure):
                built[target] = {"error": launches.message}
            else:
                built[target] = [{**launch._asdict(), "code": launch.code._asdict()} for launch in launches]
        traffic = audit.traffic
        variants.append(
            {
                "kernel": case.kernel,
                "case": case.name,
                "asked": {
                    "load_bits": case.load_bits,
                    "tensor_cores": case.tensor_cores,
                    "moved_at_most": case.moved_at_most,
                },
                "least_bytes": case.least_bytes,
                "traffic": {"error": traffic.message} if isinstance(traffic, Failure) else traffic._asdict(),
                "built": built,
            }
        )
    return {"variants": variants, "wrong": list(problems)}


def as_markdown(audits: Sequence[Audit]) -> str:
    """Returns a table with a line for each launch of each case, and a column for each target."""
    targets = list(dict.fromkeys(target for audit in audits for target in audit.launches))
    lines = [
        "| " + " | ".join(["kernel", "case", "bytes", *targets]) + " |",
        "|---|---|--:|" + "---|" * len(targets),
    ]
    for audit in audits:
        start = (audit.case.kernel, audit.case.name, _moved(audit))
        num_lines = max(len(built) if isinstance(built, list) else 1 for built in audit.launches.values())
        for index in range(num_lines):
            cells = [_cell(audit.launches[target], index) for target in targets]
            lines.append("| " + " | ".join([*start, *cells]) + " |")
            start = ("", "", "")
    return "\n".join(lines) + "\n"


def _cell(launches: list[CompiledLaunch] | Failure, index: int) -> str:
    """The figures of one launch on one target, in a few words."""
    if not isinstance(launches, list):
        return "does not compile"
    registers, spilled, _, warps, loads, stores, tensor_cores = _figures(launches[index])
    words = [f"{registers} registers", f"{warps} warps", f"{loads or 'no'} in", f"{stores or 'no'} out"]
    if launches[index].code.spilled:
        words.append(f"spilled {spilled}")
    if tensor_cores:
        words.append(tensor_cores)
    return ", ".join(words)
