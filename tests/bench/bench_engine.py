"""Attention from a busy server: Sidelight over gRPC beside transformers, Inseq and CTranslate2, at 1, 8 and 32 streams.

Run by `make bench`, or by itself: `python tests/bench/bench_engine.py [--rounds 1] [--models opus] [--concurrency 1 8]
[--contenders sidelight ct2]`. Two models: the bundled one on real sentences, with as many in flight as the concurrency
says, and a random one of opus-mt's size. In every round each contender runs once at each concurrency, one after the
other, so that a noisy machine treats all alike; figures are medians over rounds. The targets that it checks are those
of the issue that asked for continuous batching.
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import contenders
import engine_report
import torch
import workloads
from contender import Contender
from engine_report import Figures, Report
from rich.console import Console

MODELS = ("bundled", "opus")
SENTENCES = 96
# Between two runs, in seconds: threads of the one before go on spinning for a while, then it should be quiet.
PAUSE, LISTEN = 0.3, 0.1


def main() -> int:
    options = _options()
    # Whatever ends this ends the servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    contenders.prepare()
    cores = os.cpu_count() or 1
    console = Console(width=150, highlight=False)
    bandwidth = measure_bandwidth()
    console.print(f"{cores} cores; memory is read at {bandwidth / 1e9:.1f} GB/s by {cores} threads of torch's")
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            if name == "bundled":
                workload = workloads.bundled_workload(SENTENCES)
            else:
                workload = workloads.opus_workload(Path(folder) / "opus", max(options.concurrency))
            if workload is None:
                console.print(f"\nbundled: skipped, as {workloads.DATA} is not here")
                continue
            report = _measure(workload, options, Path(folder), bandwidth)
            engine_report.show(report, console)
            reports.append(report)
    if reports:
        engine_report.plot(reports, options.plot)
        console.print(f"\nplot: {options.plot}")
        if options.json:
            engine_report.save(reports, options.json)
            console.print(f"figures: {options.json}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32], metavar="N")
    names = ", ".join(contenders.LABELS)
    parser.add_argument(
        "--contenders",
        nargs="+",
        default=list(contenders.LABELS),
        choices=list(contenders.LABELS),
        metavar="NAME",
        help=f"of {names}",
    )
    parser.add_argument(
        "--serve", default="", metavar="OPTIONS", help="more for `sidelight serve`, such as '--threads 2'"
    )
    parser.add_argument("--plot", type=Path, default=Path("build/bench_engine.png"), metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    options = parser.parse_args()
    options.serve = shlex.split(options.serve)
    if options.rounds < 1 or min(options.concurrency) < 1:
        parser.error("rounds and concurrency must be at least 1")
    return options


def measure_bandwidth() -> float:
    """Bytes per second that all cores together read from memory, or read and write; the best of many passes."""
    numbers = torch.ones(1 << 27)  # 512 MiB, far beyond any cache
    copy = torch.empty_like(numbers)
    size = numbers.numel() * numbers.element_size()
    best = 0.0
    for _ in range(8):
        began = time.perf_counter()
        numbers.sum()
        read = time.perf_counter()
        copy.copy_(numbers)
        copied = time.perf_counter()
        best = max(best, size / (read - began), 2 * size / (copied - read))
    return best


def _measure(workload: workloads.Workload, options: argparse.Namespace, scratch: Path, bandwidth: float) -> Report:
    size = workloads.measure_size(workload.folder)
    names = [name for name in contenders.LABELS if name in options.contenders]
    with contenders.start_contenders(names, workload, size, scratch, options.serve) as (ready, refused):
        report = Report(workload.name, workload.title, options.rounds, bandwidth, size.step_weights, refused)
        crosses = {name: cross for name, contender in ready.items() if (cross := contender.cross()) is not None}
        if {"sidelight", "attentions"} <= crosses.keys():
            report.cross_difference = engine_report.difference(crosses["sidelight"], crosses["attentions"])
        for concurrency in options.concurrency:
            for contender in ready.values():
                if not contender.one_by_one:
                    contender.run(concurrency)
        # What has been loaded stays: nobody's time should go into looking through it for garbage.
        gc.collect()
        gc.freeze()
        for number in range(options.rounds):
            _round(number, ready, workload, options.concurrency, report)
        gc.unfreeze()
    return report


def _round(
    number: int,
    ready: dict[str, Contender],
    workload: workloads.Workload,
    levels: Sequence[int],
    report: Report,
) -> None:
    """Everybody some times at every concurrency, in order and in reverse; who is first changes from round to round."""
    names = list(ready)
    start = number % max(1, len(names))
    names = names[start:] + names[:start]
    for name in names:
        if ready[name].one_by_one:
            # One run tells of every concurrency.
            outcome = ready[name].run(max(levels))
            for concurrency in levels:
                sentences = len(workload.sentences(concurrency))
                report.figures.setdefault(name, {}).setdefault(concurrency, Figures(sentences)).add(outcome)
            _pause(report)
    for concurrency in levels:
        sentences = len(workload.sentences(concurrency))
        for turn in range(workload.turns):
            for name in names if turn % 2 == 0 else reversed(names):
                if not ready[name].one_by_one:
                    outcome = ready[name].run(concurrency)
                    report.figures.setdefault(name, {}).setdefault(concurrency, Figures(sentences)).add(outcome)
                    _pause(report)


def _pause(report: Report) -> None:
    """Lets threads come to rest, and sees whether others work on this machine meanwhile."""
    time.sleep(PAUSE)
    before, began = _worked(), time.perf_counter()
    time.sleep(LISTEN)
    if before is not None and (after := _worked()) is not None:
        report.busy.append((after - before) / (time.perf_counter() - began) / (os.cpu_count() or 1))


def _worked() -> float | None:
    """Seconds that all cores together have worked since the start of the machine; None where nobody counts them."""
    if not Path("/proc/stat").exists():
        return None
    user, nice, system, _, _, interrupts, soft, stolen, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
