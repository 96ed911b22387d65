"""A heatmap of attention by matplotlib: for papers, and for notebooks that are printed."""

# matplotlib is optional, and its stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportMissingImports=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..parameters import AttentionKind
from ..results import Attribution
from ..views import escape_controls
from .selection import find_kind, get_labels, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches for a row, for a column, and for what stands around both.
_ROW, _COLUMN, _FRAME = 0.28, 0.34, 1.6


def plot(
    attribution: Attribution, kind: AttentionKind | None, layer: int | None, head: int | None, ax: Axes | None
) -> Axes:
    """See `Attribution.plot`."""
    import matplotlib.pyplot as plt

    kind = find_kind(attribution, kind)
    numbers = select(attribution, kind, layer, head).T
    positions, rows = get_labels(attribution, kind)
    if ax is None:
        size = (_FRAME + _COLUMN * len(positions), _FRAME + _ROW * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    greatest = float(np.nanmax(np.abs(numbers), initial=1e-9))
    colors, least = ("RdBu_r", -greatest) if attribution.started.is_difference else ("Oranges", 0.0)
    picture = ax.imshow(numbers, cmap=colors, vmin=least, vmax=greatest, aspect="auto", interpolation="nearest")
    # A "$" would begin a formula.
    columns = [_show(part.label) for part in positions] or [str(index) for index in range(numbers.shape[1])]
    ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), [_show(part.label) for part in rows])
    ax.set_title(_title(kind, layer, head), fontsize="medium")
    ax.figure.colorbar(picture, ax=ax, fraction=0.05, pad=0.02)
    return ax


def _show(label: str) -> str:
    return escape_controls(label).replace("$", r"\$")


def _title(kind: AttentionKind, layer: int | None, head: int | None) -> str:
    chosen = [f"{name} {number}" for name, number in (("layer", layer), ("head", head)) if number is not None]
    return ", ".join([kind, *chosen])
