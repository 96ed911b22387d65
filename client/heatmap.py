"""Attention in a terminal: source words across, target tokens down, a line for each token as it arrives.

Knows tokens and shares, and rich; knows nothing of connections.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from .results import Numbers, Started, Step, Token

_SHADES = " ·░▒▓█"  # without colour: the more ink, the more attention
_HOT = (224, 92, 22)
_TARGET = 14  # terminal columns for the token that is being written
_WIDEST = 9  # ... and at most for a source word
_TOP = 5  # positions listed for a token, where there is no source to spread out


@dataclass(frozen=True)
class Word:
    """Source positions that are shown as one: pieces of one word. Their shares are added."""

    label: str
    positions: tuple[int, ...]
    special: bool


def words(tokens: Sequence[Token]) -> list[Word]:
    """Joins tokens that touch each other with letters or digits on both sides."""
    joined: list[list[int]] = []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else None
        touches = before is not None and before.end == token.begin and not token.special and not before.special
        if touches and before is not None and before.text[-1:].isalnum() and token.text[:1].isalnum():
            joined[-1].append(place)
        else:
            joined.append([place])
    return [_word(tokens, places) for places in joined]


def _word(tokens: Sequence[Token], places: Sequence[int]) -> Word:
    if len(places) == 1:
        token = tokens[places[0]]
        return Word(token.label, tuple(places), token.special)
    return Word("".join(tokens[place].text for place in places), tuple(places), False)


def mean(numbers: Numbers) -> Numbers:
    """One share for each position: the mean over whatever axes are left behind it."""
    return numbers.reshape(numbers.shape[0], -1).mean(1, dtype=np.float64)


class Heatmap:
    """Prints a header and then a line for each step.

    Source words that do not fit side by side are numbered, with a legend; very many get columns of one character, and
    more than the terminal is wide go on in a second line.
    """

    def __init__(self, console: Console, started: Started) -> None:
        self._console = console
        self._has_source = "cross" in started.layouts
        self._words = words(started.source)
        self._colour = console.color_system is not None and not console.no_color
        room = max(8, console.width - _TARGET - 2)
        widths = [min(_WIDEST, max(2, cell_len(word.label))) for word in self._words]
        while max(widths, default=0) > 4 and sum(widths) + len(widths) > room:
            widest = max(widths)
            widths = [min(width, widest - 1) for width in widths]
        self._numbered = sum(widths) + len(widths) > room
        self._gap = 1
        self._per_line = max(1, len(widths))
        if self._numbered:
            narrow = len(widths) * 3 > room
            widths, self._gap = [1 if narrow else 2] * len(widths), 0 if narrow else 1
            self._per_line = room if narrow else room // 3
        self._widths = widths

    def header(self) -> None:
        """Prints the source along the top."""
        if not self._has_source:
            return
        if self._numbered:
            legend = "  ".join(f"{place}\N{NO-BREAK SPACE}{word.label}" for place, word in enumerate(self._words))
            self._console.print(Text(legend, style="dim"))
        for line in self._lines():
            if self._gap:
                labels = [str(place) if self._numbered else self._words[place].label for place in line]
                self._header_line(line, labels)
            else:  # one character wide: tens above, units below
                self._header_line(line, [str(place // 10) if place % 10 == 0 else " " for place in line])
                self._header_line(line, [str(place % 10) for place in line])

    def step(self, step: Step, seen: Sequence[Token]) -> None:
        """Prints one step. `seen` are the tokens at the positions of its decoder self-attention."""
        label = Text(_fit(step.token.label, _TARGET, right=True), style="dim" if step.token.special else "bold")
        if step.cross is None:
            own = Text() if step.decoder_self is None else self._most_seen(mean(step.decoder_self), seen)
            self._print(label + Text(" ") + own)
            return
        shares = mean(step.cross)
        for number, line in enumerate(self._lines()):
            text = (label.copy() if number == 0 else Text(" " * _TARGET)).append(" ")
            for place in line:
                share = float(sum(shares[position] for position in self._words[place].positions))
                text.append_text(self._cell(share, self._widths[place])).append(" " * self._gap)
            self._print(text)

    def _header_line(self, line: range, labels: Sequence[str]) -> None:
        text = Text(" " * (_TARGET + 1))
        for place, label in zip(line, labels, strict=True):
            style = "dim" if self._words[place].special else "bold"
            text.append(_fit(label, self._widths[place]), style=style).append(" " * self._gap)
        self._print(text)

    def _lines(self) -> Iterator[range]:
        """The words that stand side by side, line by line."""
        count = len(self._words)
        for first in range(0, count, self._per_line):
            yield range(first, min(first + self._per_line, count))

    def _cell(self, share: float, width: int) -> Text:
        share = min(1.0, max(0.0, share))
        if self._colour:
            return Text(_fit(_percent(share) if width > 1 else "", width), style=_tint(share))
        # The square root spreads the many small shares over the few shades.
        shade = _SHADES[round(share**0.5 * (len(_SHADES) - 1))]
        return Text(_fit(shade * min(width, 3), width))

    def _most_seen(self, shares: Numbers, seen: Sequence[Token]) -> Text:
        """The positions looked at most, with their shares in percent."""
        text = Text()
        for place in np.argsort(-shares, kind="stable")[:_TOP]:
            share = float(shares[place])
            entry = f" {seen[int(place)].label} {_percent(share)} "
            if share < 0.005 or cell_len(text.plain) + cell_len(entry) + _TARGET + 2 > self._console.width:
                break
            text.append(entry, style=_tint(share) if self._colour else "").append(" ")
        return text

    def _print(self, text: Text) -> None:
        text.rstrip()
        self._console.print(text, overflow="crop", no_wrap=True, crop=True)


def _percent(share: float) -> str:
    return f"{min(share * 100, 99):.0f}" if share >= 0.005 else ""


def _tint(share: float) -> Style:
    """A background between nothing and hot, and ink that can be read on it."""
    if share < 0.005:
        return Style()
    shade = 0.12 + 0.88 * min(1.0, share)
    red, green, blue = (int(30 + (part - 30) * shade) for part in _HOT)
    ink = Color.from_rgb(255, 255, 255) if share < 0.7 else Color.from_rgb(20, 10, 0)
    return Style(bgcolor=Color.from_rgb(red, green, blue), color=ink)


def _fit(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly so many terminal cells; wide characters count two."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
