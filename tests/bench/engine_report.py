"""The figures of `bench_engine.py`: tables, targets and whether they are met, a plot, JSON.

This module knows the outcomes of runs. It runs nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from contender import Outcome
from contenders import LABELS
from rich.console import Console
from rich.table import Table

mpl.use("Agg")
import matplotlib.pyplot as plt

SIDELIGHT = {"sidelight": 4, "off": 4, "sidelight-int8": 1}  # bytes of a weight
CLOSE = 1e-5
# The share of the cores that other programs may use. Two threads that wait for each other at every layer take a
# multiple of their time if one of them shares its core.
QUIET = 0.05


@dataclass
class Figures:
    """All runs of one contender at one concurrency.

    Attributes:
        sentences: The number of sentences of a whole run.
        seconds: The seconds of each whole run. A shorter run is extrapolated.
        tokens: The number of tokens of a whole run, extrapolated likewise.
        targets: The token ids of the first run.
        first, between, latency, admitted: Seconds of every stream: until its first step, between two steps, until its
            end, and from admission to its first step by the server's own count. For servers only.
    """

    sentences: int
    seconds: list[float] = field(default_factory=list)
    tokens: float = 0.0
    targets: list[list[int]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    admitted: list[float] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Adds a run."""
        share = self.sentences / len(outcome.targets)
        self.seconds.append(outcome.seconds * share)
        self.targets = self.targets or outcome.targets
        self.tokens = sum(map(len, self.targets)) * share
        for stream in outcome.streams:
            self.first.append(stream.first - stream.sent)
            self.latency.append(stream.ended - stream.sent)
            self.admitted.append(stream.admission_to_first)
            if stream.between_steps is not None:
                self.between.append(stream.between_steps)

    @property
    def median(self) -> float:
        """Seconds for a whole run."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.median


@dataclass
class Report:
    """The results of one model.

    Attributes:
        model: The name of the workload.
        title: The title of the workload.
        rounds: The number of rounds.
        bandwidth: The bandwidth of the memory, bytes per second.
        step_weights: The number of weights that one decoding step reads.
        refused: Why contenders did not run, by name.
        figures: By contender, then by concurrency.
        cross_difference: The greatest difference of Sidelight's cross-attention to transformers' own, on one sentence.
        busy: The share of the machine's cores that other programs used in each pause.
    """

    model: str
    title: str
    rounds: int
    bandwidth: float
    step_weights: int
    refused: dict[str, str]
    figures: dict[str, dict[int, Figures]] = field(default_factory=dict)
    cross_difference: float | None = None
    busy: list[float] = field(default_factory=list)

    def levels(self) -> list[int]:
        """The concurrencies measured."""
        return sorted({level for figures in self.figures.values() for level in figures})

    def rate(self, level: int, *names: str) -> float | None:
        """Tokens per second of the fastest of these contenders; None where none was measured."""
        rates = [self.figures[name][level].rate for name in names if level in self.figures.get(name, {})]
        return max(rates, default=None)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest difference; infinite where shapes differ."""
    return float(np.abs(a - b).max()) if a.shape == b.shape else float("inf")


# ---- tables ---------------------------------------------------------------------------------------------------------


def show(report: Report, console: Console) -> None:
    """Prints all of it."""
    console.print()
    console.print(_speeds(report))
    console.print("Ratios are times per token; above 1: slower than (a). Medians of the rounds.", style="dim")
    if report.busy and (busy := statistics.mean(report.busy)) > QUIET:
        text = f"DISTURBED: something else worked on {busy:.0%} of the cores meanwhile; take no figure seriously"
        console.print(text, style="bold red")
    for name, reason in report.refused.items():
        console.print(f"NOT MEASURED: {LABELS[name]}: {reason}", style="bold red", markup=False)
    _show_correctness(report, console)
    if any(name in report.figures for name in SIDELIGHT):
        console.print(_streams(report))
        megabytes = report.step_weights / 1e6
        console.print(
            f"A step reads {megabytes * 4:.0f} MB of weights in float32, {megabytes:.0f} MB in int8. Limit: the share "
            f"of a step's time that {report.bandwidth / 1e9:.1f} GB/s would take for them; above 100% where they stay "
            "in the cache.",
            style="dim",
        )
    console.print(_targets_table(report))


def _speeds(report: Report) -> Table:
    table = Table(title=f"{report.title}; rounds: {report.rounds}")
    table.add_column("streams")
    for level in report.levels():
        for column in (f"{level}: ms", "tokens/s", "times (a)"):
            table.add_column(column, justify="right")
    for name, figures in report.figures.items():
        cells: list[str] = []
        for level in report.levels():
            base, rate = report.rate(level, "sidelight"), figures[level].rate
            ratio = f"{base / rate:.2f}" if base else ""
            cells += [f"{figures[level].median * 1000:,.0f}", f"{rate:,.0f}", ratio]
        table.add_row(LABELS[name], *cells)
    return table


def _streams(report: Report) -> Table:
    table = Table(title="Sidelight's streams, ms")
    columns = ("", "streams", "first step", "of these, since admission", "between steps", "latency p50", "p99", "limit")
    for column in columns:
        table.add_column(column, justify="left" if not column else "right")
    for name, bytes_ in SIDELIGHT.items():
        for level, figures in report.figures.get(name, {}).items():
            between = statistics.median(figures.between)
            times = (
                statistics.median(figures.first),
                statistics.median(figures.admitted),
                between,
                *(float(np.percentile(figures.latency, q)) for q in (50, 99)),
            )
            limit = report.step_weights * bytes_ / report.bandwidth / between
            cells = [f"{seconds * 1000:,.1f}" for seconds in times]
            table.add_row(LABELS[name], str(level), *cells, f"{limit:.0%}")
    return table


def _show_correctness(report: Report, console: Console) -> None:
    """Prints whether tokens and attention are the same. A difference is printed in red."""
    for name, figures in report.figures.items():
        for level, ours in figures.items():
            if name == "generate" or level not in report.figures.get("generate", {}):
                continue
            truth = report.figures["generate"][level].targets
            pairs = list(zip(ours.targets, truth, strict=False))
            same = sum(a == b for a, b in pairs)
            must = name in ("sidelight", "off")
            if must and same < len(pairs):
                text = f"WRONG: {LABELS[name]}, {level} streams: {len(pairs) - same} of {len(pairs)} sentences differ"
                console.print(f"{text} from (c)'s", style="bold white on red")
            elif level == max(figures):
                console.print(f"{LABELS[name]}: {same} of {len(pairs)} sentences as (c), {level} streams", style="dim")
    if report.cross_difference is None:
        console.print("(a)'s cross-attention was not compared: that needs (a) and (d)", style="dim")
    elif report.cross_difference > CLOSE:
        text = f"WRONG: (a)'s cross-attention differs from (d)'s by {report.cross_difference:.1e}"
        console.print(text, style="bold white on red")
    else:
        console.print(f"cross-attention of a sentence: within {report.cross_difference:.1e} of (d)'s", style="dim")


# ---- targets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A limit of a ratio. `ratio` is None if it was not measured."""

    text: str
    limit: float
    at_most: bool
    ratio: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if the ratio was not measured."""
        if self.ratio is None:
            return None
        return self.ratio <= self.limit if self.at_most else self.ratio >= self.limit


FLOAT32, INT8 = ("ct2", "ct2-sorted"), ("ct2-int8", "ct2-int8-sorted")


def targets(report: Report) -> list[Target]:
    """All targets with the measured ratios. The faster of CTranslate2's two ways to batch counts."""

    def time(level: int, name: str, *others: str) -> float | None:
        ours, theirs = report.rate(level, name), report.rate(level, *others)
        return theirs / ours if ours and theirs else None

    def throughput(level: int, name: str, *others: str) -> float | None:
        ratio = time(level, name, *others)
        return 1 / ratio if ratio else None

    return [
        Target("1 stream: time of (a) / CTranslate2", 1.0, True, time(1, "sidelight", *FLOAT32)),
        Target("1 stream: time of (a) / (d)", 0.5, True, time(1, "sidelight", "attentions")),
        Target("1 stream: time of (a) int8 / CTranslate2 int8", 0.85, True, time(1, "sidelight-int8", *INT8)),
        Target("8 streams: throughput of (a) / CTranslate2", 1.4, False, throughput(8, "sidelight", *FLOAT32)),
        Target("8 streams: throughput of (a) / Inseq", 12.0, False, throughput(8, "sidelight", "inseq")),
        Target(
            "8 streams: throughput of (a) int8 / CTranslate2 int8", 1.0, False, throughput(8, "sidelight-int8", *INT8)
        ),
        Target("32 streams: throughput of (a) / CTranslate2", 1.5, False, throughput(32, "sidelight", *FLOAT32)),
        Target(
            "32 streams: throughput of (a) int8 / CTranslate2 int8", 1.0, False, throughput(32, "sidelight-int8", *INT8)
        ),
        *(
            Target(f"at {level}: time of (a) / capture off, median of pairs", 1.03, True, _capture(report, level))
            for level in report.levels()
        ),
        Target("1 stream: first step since admission / time between steps", 2.0, True, _first(report)),
    ]


def _capture(report: Report, level: int) -> float | None:
    """The median ratio of two runs of the same round: a machine drifts by more than the few percent in question."""
    on, off = (report.figures.get(name, {}).get(level) for name in ("sidelight", "off"))
    if on is None or off is None:
        return None
    return statistics.median(a / b for a, b in zip(on.seconds, off.seconds, strict=True))


def _first(report: Report) -> float | None:
    figures = report.figures.get("sidelight", {}).get(1)
    return statistics.median(figures.admitted) / statistics.median(figures.between) if figures else None


def _targets_table(report: Report) -> Table:
    table = Table(title=f"Targets, {report.model}")
    for column in ("target", "limit", "measured", "met"):
        table.add_column(column, justify="left" if column == "target" else "right")
    words: dict[bool | None, str] = {True: "[green]yes[/]", False: "[bold red]no[/]", None: "[yellow]not measured[/]"}
    for target in targets(report):
        limit = f"{'at most' if target.at_most else 'at least'} {target.limit:g}"
        measured = "" if target.ratio is None else f"{target.ratio:.2f}"
        table.add_row(target.text, limit, measured, words[target.met])
    return table


# ---- files ----------------------------------------------------------------------------------------------------------


def plot(reports: Sequence[Report], path: Path) -> None:
    """Tokens per second by concurrency, a panel for each model."""
    figure, panels = plt.subplots(
        1, len(reports), figsize=(6.5 * len(reports), 6.5), squeeze=False, layout="constrained"
    )
    colors = dict(zip(LABELS, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for panel, report in zip(panels[0], reports, strict=True):
        levels = report.levels()
        for name, figures in report.figures.items():
            rates = [figures[level].rate for level in levels]
            ours = name in SIDELIGHT
            style: dict[str, Any] = {"linestyle": "-" if ours else "--", "linewidth": 2.5 if ours else 1.5}
            panel.plot(levels, rates, marker="o" if ours else "s", color=colors[name], label=LABELS[name], **style)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(levels, [str(level) for level in levels])
        panel.set_xlabel("streams at once")
        panel.set_ylabel("tokens per second")
        panel.set_title(report.title, fontsize=10)
        panel.grid(which="both", alpha=0.25)
    every = {label: line for panel in panels[0] for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(every.values(), every.keys(), loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save(reports: Sequence[Report], path: Path) -> None:
    """All figures as JSON, times in seconds, without the targets' tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([_plain(report) for report in reports], indent=1), encoding="utf-8")


def _plain(report: Report) -> dict[str, Any]:
    return {
        "model": report.model,
        "title": report.title,
        "rounds": report.rounds,
        "bandwidth": report.bandwidth,
        "step_weights": report.step_weights,
        "refused": report.refused,
        "cross_difference": report.cross_difference,
        "busy": statistics.mean(report.busy) if report.busy else None,
        "contenders": {
            name: {
                level: {
                    "seconds": figures.seconds,
                    "sentences": figures.sentences,
                    "tokens": figures.tokens,
                    "tokens_per_second": figures.rate,
                    **{
                        f"{key}_p50_p99": _percentiles(getattr(figures, key))
                        for key in ("first", "between", "latency", "admitted")
                    },
                }
                for level, figures in by_level.items()
            }
            for name, by_level in report.figures.items()
        },
        "targets": [
            {"target": t.text, "limit": t.limit, "at_most": t.at_most, "measured": t.ratio, "met": t.met}
            for t in targets(report)
        ],
    }


def _percentiles(values: Sequence[float]) -> list[float] | None:
    return [float(np.percentile(values, q)) for q in (50, 99)] if values else None
