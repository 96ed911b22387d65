"""Attention in a terminal: source words across, target tokens down, a line for each token as it arrives.

Knows tokens and shares, and rich; knows nothing of connections.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from ..results import Numbers, Started, Step, Token
from .spans import joined_text, overlaps
from .terminal import escape_controls

# Without colour: the more ink, the more attention.
_SHADES = " ·░▒▓█"
_ASCII_SHADES = " .:+*#"
_HOT = (224, 92, 22)
_TARGET = 14  # terminal columns for the token that is being written
_WIDEST = 9  # ... and at most for a source word
_NARROWEST = 4  # ... below which its letters are set one under another
_TALLEST = 10  # lines of letters one under another
_JOINER = "\u200d"  # makes one emoji of two
_TOP = 5  # words listed for a token, where they cannot stand side by side

_NO_SPACES = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}


@dataclass(frozen=True)
class Word:
    """Positions that are shown as one: pieces of one word. Their shares are added."""

    label: str
    positions: tuple[int, ...]
    special: bool


def words(tokens: Sequence[Token], boundary: int = 0) -> list[Word]:
    """Joins tokens that share a character, and those that touch with letters on both sides.

    The latter in scripts that put spaces between words. At `boundary` another text begins, whose spans count anew.
    """
    joined: list[list[int]] = []
    for place, token in enumerate(tokens):
        if place not in (0, boundary) and _continues(tokens[place - 1], token):
            joined[-1].append(place)
        else:
            joined.append([place])
    return [_word(tokens, places) for places in joined]


def _continues(before: Token, token: Token) -> bool:
    if overlaps(before, token):
        return True
    if token.special or before.special or before.end != token.begin:
        return False
    return _in_word(before.text[-1:]) and _in_word(token.text[:1])


def _in_word(character: str) -> bool:
    if not character or unicodedata.category(character)[0] not in "LMN":
        return False
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0] not in _NO_SPACES


def _word(tokens: Sequence[Token], places: Sequence[int]) -> Word:
    first = tokens[places[0]]
    text = joined_text([tokens[place] for place in places]).strip() if len(places) > 1 else ""
    return Word(escape_controls(text or first.label), tuple(places), first.special)


def mean(numbers: Numbers) -> Numbers:
    """One share for each position: the mean over whatever axes are left behind it."""
    return numbers.reshape(numbers.shape[0], -1).mean(1, dtype=np.float64)


class Heatmap:
    """Prints a header and then a line for each step.

    Source words stand side by side where the terminal is wide enough, at need with their letters one under another.
    A source that is longer than that, or a decoder-only model's text, is no grid: each line lists the words that its
    token looked at most.
    """

    def __init__(self, console: Console, started: Started) -> None:
        self._console = console
        self._has_source = "cross" in started.layouts
        self._words = words(started.source)
        # Where the target begins, among the positions that a step has seen.
        self._boundary = 0 if started.is_encoder_decoder else len(started.source)
        self._colour = console.color_system is not None and not console.no_color
        self._shades = _SHADES if console.encoding.lower().startswith("utf") else _ASCII_SHADES
        self._widths, self._upright = _widths(self._words, max(8, console.width - _TARGET - 2))
        self._grid = self._has_source and bool(self._widths)

    def header(self) -> None:
        """Prints the source along the top."""
        if not self._grid:
            return
        labels = [word.label for word in self._words]
        if not self._upright:
            self._header_line(labels)
            return
        letters = [_letters(label) for label in labels]
        height = max(map(len, letters))
        for line in range(height):
            # Words stand on the grid, so short ones begin further down.
            offsets = [line - (height - len(column)) for column in letters]
            self._header_line([column[o] if o >= 0 else "" for column, o in zip(letters, offsets, strict=True)])

    def step(self, step: Step, seen: Sequence[Token]) -> None:
        """Prints one step. `seen` are the tokens at the positions of its decoder self-attention."""
        label = _fit(escape_controls(step.token.label), _TARGET, right=True)
        text = Text.assemble((label, "dim" if step.token.special else "bold"), " ")
        if step.cross is not None:
            shares = mean(step.cross)
            text.append_text(self._cells(shares) if self._grid else self._most_seen(shares, self._words))
        elif step.decoder_self is not None:
            shares = mean(step.decoder_self)
            text.append_text(self._most_seen(shares, words(seen[: len(shares)], self._boundary)))
        self._print(text)

    def _header_line(self, labels: Sequence[str]) -> None:
        text = Text(" " * (_TARGET + 1))
        for word, label, width in zip(self._words, labels, self._widths, strict=True):
            text.append(_fit(label, width), style="dim" if word.special else "bold").append(" ")
        self._print(text)

    def _cells(self, shares: Numbers) -> Text:
        text = Text()
        for word, width in zip(self._words, self._widths, strict=True):
            share = _share(shares, word)
            if self._colour:
                cell = Text(_fit(_percent(share) if width > 1 else "", width), style=self._tint(share))
            else:
                # The square root spreads the many small shares over the few shades.
                shade = self._shades[round(share**0.5 * (len(self._shades) - 1))]
                cell = Text(_fit(shade * min(width, 3), width))
            text.append_text(cell).append(" ")
        return text

    def _most_seen(self, shares: Numbers, seen: Sequence[Word]) -> Text:
        """The words looked at most, with their shares in percent."""
        text = Text()
        ranked = sorted(((_share(shares, word), word) for word in seen), key=lambda pair: -pair[0])
        for share, word in ranked[:_TOP]:
            entry = f" {_fit(word.label, min(_TARGET, cell_len(word.label)))} {share * 100:.0f} "
            if share < 0.005 or cell_len(text.plain) + cell_len(entry) + _TARGET + 2 > self._console.width:
                break
            text.append(entry, style=self._tint(share) if self._colour else "").append(" ")
        return text

    def _tint(self, share: float) -> Style:
        """A background between nothing and hot, and ink that can be read on it."""
        if share < 0.005:
            return Style()
        if self._console.color_system == "standard":  # sixteen colours, none of them between
            steps = ((0.5, "black on bright_yellow"), (0.25, "black on yellow"), (0.1, "white on bright_black"))
            return Style.parse(next((style for least, style in steps if share >= least), "bright_black"))
        shade = 0.12 + 0.88 * share
        red, green, blue = (int(30 + (part - 30) * shade) for part in _HOT)
        ink = Color.from_rgb(255, 255, 255) if share < 0.7 else Color.from_rgb(20, 10, 0)
        return Style(bgcolor=Color.from_rgb(red, green, blue), color=ink)

    def _print(self, text: Text) -> None:
        if self._colour:
            text.right_crop(1)  # the last gap; more could be a cell of one colour
        else:
            text.rstrip()
        self._console.print(text, overflow="crop", no_wrap=True, crop=True)


def _widths(shown: Sequence[Word], room: int) -> tuple[list[int], bool]:
    """Each word's columns, a space apart, and whether letters stand one under another; none if it is hopeless."""
    widths = [min(_WIDEST, max(2, cell_len(word.label))) for word in shown]
    while max(widths, default=0) > _NARROWEST and sum(widths) + len(widths) > room:
        widest = max(widths)
        widths = [min(width, widest - 1) for width in widths]
    if sum(widths) + len(widths) <= room:
        return widths, False
    wide = any(cell_len(character) > 1 for word in shown for character in word.label)
    for width in (2,) if wide else (2, 1):
        if len(shown) * (width + 1) <= room:
            return [width] * len(shown), True
    return [], False


def _letters(label: str) -> list[str]:
    """A word's letters with what combines with them, and an ellipsis where there are too many."""
    letters: list[str] = []
    for character in label:
        if letters and (cell_len(character) == 0 or letters[-1].endswith(_JOINER)):
            letters[-1] += character
        else:
            letters.append(character)
    return letters if len(letters) <= _TALLEST else [*letters[: _TALLEST - 1], "⋮"]


def _share(shares: Numbers, word: Word) -> float:
    return min(1.0, max(0.0, float(sum(shares[position] for position in word.positions))))


def _percent(share: float) -> str:
    return f"{min(share * 100, 99):.0f}" if share >= 0.005 else ""


def _fit(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly so many terminal cells; wide characters count two."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
