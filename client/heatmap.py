"""Attention in a terminal: source words across, target words down, a line for each token as it arrives.

Knows tokens and shares, and rich; knows nothing of connections.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from .results import Numbers, Started, Step, Token

_SHADES = " ·░▒▓█"  # without colour: the more ink, the more attention
_HOT = (224, 92, 22)
_WIDEST_TARGET = 14  # columns for the token that is being written
_WIDEST_CELL = 9
_TOP = 5  # positions listed for a token, where there is no source to spread out


def mean(numbers: Numbers) -> Numbers:
    """One share for each position: the mean over whatever axes are left behind it."""
    return numbers.reshape(numbers.shape[0], -1).mean(1, dtype=np.float64)


class Heatmap:
    """Prints a header and then a line for each step.

    A source that is too wide for the terminal is shown in numbered columns with a legend; one that is wider still takes
    several lines for each step.
    """

    def __init__(self, console: Console, started: Started) -> None:
        self._console = console
        self._started = started
        self._target = _WIDEST_TARGET
        room = console.width - self._target - 1
        labels = [token.label for token in started.source]
        self._cells = [min(_WIDEST_CELL, max(2, cell_len(label))) for label in labels]
        while sum(self._cells) + len(self._cells) > room and max(self._cells, default=0) > 4:
            self._cells = [min(cell, max(self._cells) - 1) for cell in self._cells]
        self._numbered = sum(self._cells) + len(self._cells) > room
        if self._numbered:
            self._cells = [2] * len(labels)
        self._per_line = max(1, room // 3 if self._numbered else len(labels))

    def header(self) -> None:
        """Prints the source along the top."""
        if "cross" not in self._started.layouts:
            return
        if self._numbered:
            legend = "  ".join(f"{place}\u00a0{token.label}" for place, token in enumerate(self._started.source))
            self._console.print(Text(legend, style="dim"))
        for line in self._lines():
            text = Text(" " * (self._target + 1))
            for place in line:
                token = self._started.source[place]
                label = str(place) if self._numbered else token.label
                text.append(_fit(label, self._cells[place]) + " ", style="dim" if token.special else "bold")
            self._print(text)

    def step(self, step: Step, seen: Sequence[Token]) -> None:
        """Prints one step. `seen` are the tokens at the positions of its decoder self-attention."""
        label = Text(_fit(step.token.label, self._target, right=True), style="dim" if step.token.special else "bold")
        if step.cross is not None:
            shares = mean(step.cross)
            for number, line in enumerate(self._lines()):
                text = label.copy() if number == 0 else Text(" " * self._target)
                text.append(" ")
                for place in line:
                    text.append_text(self._cell(float(shares[place]), self._cells[place]))
                    text.append(" ")
                self._print(text)
        elif step.decoder_self is not None:
            self._print(label + Text("  ") + self._top(mean(step.decoder_self), seen))
        else:
            self._print(label)

    def _lines(self) -> Iterable[range]:
        """The source positions that stand side by side: all of them, or, numbered, as many as fit."""
        count = len(self._started.source)
        return [range(first, min(first + self._per_line, count)) for first in range(0, count, self._per_line)]

    def _cell(self, share: float, width: int) -> Text:
        strength = min(1.0, max(0.0, share))
        if self._console.no_color or self._console.color_system is None:
            return Text(_fit(_SHADES[round(strength**0.5 * (len(_SHADES) - 1))] * min(width, 3), width))
        return Text(_fit(_percent(strength) if width > 1 else "", width), style=_tint(strength))

    def _top(self, shares: Numbers, seen: Sequence[Token]) -> Text:
        """The positions looked at most, with their shares."""
        text = Text()
        order = np.argsort(-shares, kind="stable")[:_TOP]
        colour = not (self._console.no_color or self._console.color_system is None)
        room = self._console.width - self._target - 2
        for place in order:
            share = float(shares[place])
            if share < 0.005:
                break
            name = seen[int(place)].label if place < len(seen) else "?"
            entry = f" {name} {_percent(share)} "
            if cell_len(text.plain) + cell_len(entry) > room:
                break
            text.append(entry, style=_tint(share) if colour else "")
        return text

    def _print(self, text: Text) -> None:
        self._console.print(text, overflow="crop", no_wrap=True, crop=True, soft_wrap=False)


def _percent(share: float) -> str:
    return f"{share * 100:.0f}" if share >= 0.005 else ""


def _tint(strength: float) -> Style:
    """A background between nothing and hot, and ink that can be read on it."""
    if strength < 0.005:
        return Style()
    shade = 0.12 + 0.88 * strength
    red, green, blue = (int(30 + (part - 30) * shade) for part in _HOT)
    ink = Color.from_rgb(255, 255, 255) if strength < 0.7 else Color.from_rgb(20, 10, 0)
    return Style(bgcolor=Color.from_rgb(red, green, blue), color=ink)


def _fit(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly so many terminal cells; wide characters count two."""
    if cell_len(text) > width:
        text = set_cell_size(text, max(0, width - 1)) + "…" if width > 1 else set_cell_size(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
