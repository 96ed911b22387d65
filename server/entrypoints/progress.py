"""Progress of what takes long, on standard error. Only a terminal gets it: never a log, a file or a pipe."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..models import BUNDLED_NAME, LOADING_STAGES, LoadingStage

# Layers are timed while a model is loaded: a bar that is drawn more often would disturb that.
_DRAWINGS_PER_SECOND = 4


@contextmanager
def open_progress(*, quiet: bool) -> Iterator[Progress]:
    """Gives a display of bars, one for each task. Without a terminal, or with `quiet`, it shows nothing.

    Lines of the log stand above the bars. At the end the bars are removed.
    """
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        refresh_per_second=_DRAWINGS_PER_SECOND,
        redirect_stdout=False,
        transient=True,
    )
    # The log has standard error as it was when the log was opened. Rich replaces it by a stream that knows the bars.
    before = sys.stderr
    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is before
    ]
    with progress:
        for handler in handlers:
            handler.setStream(sys.stderr)
        try:
            yield progress
        finally:
            for handler in handlers:
                handler.setStream(before)


@contextmanager
def show_loading(
    progress: Progress, path: str | None, name: str | None = None
) -> Iterator[Callable[[LoadingStage], None]]:
    """Shows a bar for a model in a `with` block. Gives what `load` calls as each stage begins.

    The bar has the name, or else the end of the path; without either, it is the bundled model. While files may come
    from the hub, the hub's own bars are shown instead: both at once would garble each other.
    """
    may_download = path is not None and not os.path.exists(path) and not progress.disable
    name = name or PurePath(path or BUNDLED_NAME).name  # of a path, as a line has little room
    task = progress.add_task(f"loading {name}", total=len(LOADING_STAGES))

    def show(stage: LoadingStage) -> None:
        if may_download and stage == LOADING_STAGES[0]:
            progress.stop()
            return
        progress.update(
            task, description=f"loading {name}: {stage}", completed=LOADING_STAGES.index(stage), refresh=True
        )
        progress.start()  # unless it goes on already

    try:
        yield show
    finally:
        progress.remove_task(task)
        progress.start()
