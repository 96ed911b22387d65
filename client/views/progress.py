"""Shows on standard error how far something is, since standard output is for results. Without a terminal: nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .terminal import make_console


def make_progress_bar(*, quiet: bool) -> Progress:
    """Makes a bar that counts texts. Without a terminal, or with `quiet`, the bar is disabled."""
    return _make_progress(BarColumn(), MofNCompleteColumn(), TextColumn("texts"), TimeRemainingColumn(), quiet=quiet)


@contextmanager
def show_waiting(message: str, *, quiet: bool) -> Generator[None, None, None]:
    """Shows a message, a moving bar and the time in a `with` block of unknown length, and removes them at its end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with _make_progress(*columns, quiet=quiet) as progress:
        progress.add_task(message, total=None)
        yield


def _make_progress(*columns: ProgressColumn, quiet: bool) -> Progress:
    console = make_console(stderr=True)
    disable = quiet or not console.is_terminal
    return Progress(*columns, console=console, disable=disable, transient=True, redirect_stdout=False)
