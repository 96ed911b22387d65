"""What Jupyter shows of a stream while it runs: a line for each step, and the whole result at the end."""

# IPython is there in a notebook, and nowhere else.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import time
from html import escape
from typing import Any

import numpy as np

from ..offset_units import Span, Token
from ..results import Attribution, FloatArray, Started, Step, Unit
from ..views import escape_controls
from .html import attribution_html, text_html

# Seconds between two drawings. Each drawing is kept in the messages of the notebook for a while.
_INTERVAL = 0.1

# The last lines are shown, and sources with more positions are shown without columns.
_MAX_LINES, _MAX_COLUMNS = 40, 60


class LiveDisplay:
    """A display in a notebook that grows with a stream."""

    def __init__(self, started: Started) -> None:
        from IPython.display import display

        self._started = started
        self._parts: list[Step | Unit] = []
        self._drawn = time.monotonic()
        self._handle: Any = display(_as_html(self._render()), raw=True, display_id=True)

    def add(self, part: Step | Unit) -> None:
        """Adds a step, or a unit, and draws it unless the last drawing is too near."""
        self._parts.append(part)
        if time.monotonic() - self._drawn >= _INTERVAL:
            self._handle.update(_as_html(self._render()), raw=True)
            self._drawn = time.monotonic()

    def finish(self, attribution: Attribution) -> None:
        """Shows the whole result in place of the lines."""
        self._handle.update(_as_html(attribution_html(attribution)), raw=True)

    def _render(self) -> str:
        columns = self._started.source_positions
        if len(columns) > _MAX_COLUMNS or "cross" not in self._started.layouts:
            columns = ()
        head = "".join(f"<th>{_show(part)}</th>" for part in columns)
        lines = "".join(_render_line(part, bool(columns)) for part in self._parts[-_MAX_LINES:])
        text = "".join(part.text if isinstance(part, Step) else part.span.text + " " for part in self._parts)
        return f"{text_html(text)}<table><tr><th></th>{head}</tr>{lines}</table>"


def _as_html(html: str) -> dict[str, str]:
    """Returns what Jupyter shows as it is."""
    return {"text/html": html}


def _render_line(part: Step | Unit, has_columns: bool) -> str:
    label = f"<th>{_show(part.token if isinstance(part, Step) else part.span)}</th>"
    if not has_columns or part.cross is None:
        return f"<tr>{label}</tr>"
    row: FloatArray = part.cross.astype(np.float32)
    row = row.mean(axis=tuple(range(1, row.ndim)))
    greatest = max(float(np.abs(row).max(initial=0)), 1.0 if row.size else 0.0, 1e-9)
    cells = "".join(
        f'<td style="background: rgba(200, 80, 20, {min(1.0, abs(float(value)) / greatest):.2f})" '
        f'title="{float(value):.3f}"></td>'
        for value in row
    )
    return f"<tr>{label}{cells}</tr>"


def _show(part: Token | Span) -> str:
    return escape(escape_controls(part.label))
