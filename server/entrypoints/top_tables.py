"""The tables of `sidelight top`, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .top_figures import CallFigures, ModelFigures, ServerFigures, Times

_NONE = "-"


def render(figures: ServerFigures, address: str, problem: str = "") -> RenderableType:
    """Returns what the terminal shows.

    Args:
        figures: What to show.
        address: Where the figures come from.
        problem: Why there are no newer figures; empty if there are.
    """
    title = Text(f"sidelight at {_printable(address)}", style="bold")
    for name, value in (
        ("up", _NONE if figures.uptime is None else _duration(figures.uptime)),
        ("memory", _bytes(figures.memory_bytes)),
        ("processor", _NONE if figures.processor_share is None else f"{figures.processor_share:.0%}"),
    ):
        title.append(f"   {name} ", style="not bold").append(value)
    lines: list[RenderableType] = [title]
    if problem:
        lines.append(Text(_printable(problem), style="red"))
    lines.append(Text(f"rates and times of the last {max(1, round(figures.seconds))} s", style="dim"))
    tables = [_calls(figures.calls), _requests(figures.models), _steps(figures.models)]
    for table in tables:
        lines += [Text(), table]
    return Group(*lines)


def _calls(calls: Sequence[CallFigures]) -> Table:
    table = _table("calls", "open", "begun/s", "failed/s", "median", "95%")
    for call in calls:
        rates = (f"{call.begun_per_second:,.1f}", f"{call.failed_per_second:,.1f}")
        table.add_row(_printable(call.method), f"{call.num_open:,}", *rates, *_times(call.times))
    return table


def _requests(models: Sequence[ModelFigures]) -> Table:
    table = _table("requests", "slots", "running", "preempted", "waiting", "stalls/s", "caches", "GPU")
    for model in models:
        counts = (model.num_running, model.num_preempted, model.num_waiting)
        table.add_row(
            _printable(model.name),
            f"{model.num_used_slots}/{model.num_slots}",
            *(f"{count:,}" for count in counts),
            f"{model.stalls_per_second:,.1f}",
            _bytes(model.cache_bytes),
            _bytes(model.device_bytes),
        )
    return table


def _steps(models: Sequence[ModelFigures]) -> Table:
    table = _table("steps", "per s", "batch", "median", "95%", "first step", "95%", "attention/s")
    for model in models:
        table.add_row(
            _printable(model.name),
            f"{model.steps_per_second:,.0f}",
            _NONE if model.sequences_per_step is None else f"{model.sequences_per_step:.1f}",
            *_times(model.step_times),
            *_times(model.first_step_times),
            _bytes(model.attention_bytes_per_second),
        )
    return table


def _table(name: str, *columns: str) -> Table:
    """Returns an empty table, whose first column names methods or models."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=18, max_width=18)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _times(times: Times) -> tuple[str, str]:
    return _seconds(times.median), _seconds(times.percentile_95)


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24} d {hours % 24} h" if hours >= 48 else f"{hours}:{minutes:02}:{seconds:02}"


def _bytes(count: float | None) -> str:
    if count is None:
        return _NONE
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _printable(text: str) -> str:
    """Returns a text without control characters, which could change the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
