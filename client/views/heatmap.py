"""A heatmap in the terminal: source words in columns, target tokens in lines. Each step prints a line as it arrives.

This module knows tokens, attention and rich; it knows no connections.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from ..offset_units import Span, Token
from ..parameters import OffsetUnit
from ..results import FloatArray, Started, Step, Unit
from .terminal import escape_controls
from .words import Word, find_words

# Without colour, a darker sign stands for more attention.
_SHADES = " ·░▒▓█"
_ASCII_SHADES = " .:+*#"
_HEAT_COLOR = (224, 92, 22)  # red, green, blue of full attention
_LABEL_WIDTH = 14  # terminal columns for the token that the step writes
_MAX_COLUMN_WIDTH = 9  # terminal columns for a source word
_MIN_COLUMN_WIDTH = 4  # if words have less room, their letters stand below each other
_MAX_HEADER_HEIGHT = 10  # lines of letters below each other
_MIN_VISIBLE_WEIGHT = 0.005  # below it, a weight would be displayed as 0 percent
_ZERO_WIDTH_JOINER = "\u200d"  # it makes one emoji of two
_MAX_SCORE_WIDTH = 11  # terminal columns for a score
_MIN_SCORE_WIDTH = 9  # a number with three digits, such as -1.23e-05
_NUM_TOP_WORDS = 5  # words in the list of a token, if the source does not fit into columns
_SPECIAL_NAME = "special"
_RELATIVE_NOTE = "numbers are percent of the greatest number of each line"


class Heatmap:
    """Prints a header, and then a line for each step.

    Source words have a column each if the terminal is wide enough. If it is almost wide enough, the letters of a word
    stand below each other. For a longer source, and for the text of a decoder-only model, there are no columns: each
    line lists the words with the most attention. Scores, and the share that special tokens took, stand in columns of
    their own. Attention whose numbers are no shares of 1 is shown relative to the greatest number of each line.
    """

    def __init__(self, console: Console, started: Started) -> None:
        self._console = console
        self._unit: OffsetUnit = started.offset_unit
        self._words = find_words(started.source_positions, unit=self._unit)
        # The index, among the positions that a step has seen, where the target begins.
        self._boundary = 0 if started.is_encoder_decoder else len(started.source_positions)
        self._has_color = console.color_system is not None and not console.no_color
        self._shades = _SHADES if console.encoding.lower().startswith("utf") else _ASCII_SHADES
        self._is_share = started.is_share
        names = [name.replace("_", " ") for name in started.scores]
        if started.special_tokens == "renormalize":
            names.append(_SPECIAL_NAME)
        self._scores = [(name, min(max(len(name), _MIN_SCORE_WIDTH), _MAX_SCORE_WIDTH)) for name in names]
        self._label_width = _LABEL_WIDTH + sum(width + 1 for _, width in self._scores)
        self._widths, self._is_vertical = _fit_columns(self._words, max(8, console.width - self._label_width - 2))
        self._has_columns = "cross" in started.layouts and bool(self._widths)

    def print_header(self) -> None:
        """Prints the source words above the columns, and the names of the scores."""
        if not self._is_share:
            self._print_line(Text(f"{_RELATIVE_NOTE} ", style="dim"))
        if not self._has_columns:
            if self._scores:
                self._print_labels(())
            return
        labels = [word.label for word in self._words]
        if not self._is_vertical:
            self._print_labels(labels)
            return
        columns = [_split_letters(label) for label in labels]
        height = max(map(len, columns))
        for line in range(height):
            # The last letters of all words are in the last line, so short words begin further down.
            indices = [line - (height - len(column)) for column in columns]
            letters = [column[index] if index >= 0 else "" for column, index in zip(columns, indices, strict=True)]
            self._print_labels(letters, has_names=line == height - 1)

    def print_step(self, step: Step | Unit, seen: Sequence[Token | Span]) -> None:
        """Prints one step or unit. `seen` holds the tokens or units at the positions of decoder self-attention."""
        target = step.token if isinstance(step, Step) else step.span
        label = _fit_to_width(escape_controls(target.label), _LABEL_WIDTH, right=True)
        text = Text.assemble((label, "dim" if target.special else "bold"), " ", self._format_scores(step))
        if step.cross is not None:
            weights = _mean_weights(step.cross)
            cells = self._format_cells(weights) if self._has_columns else self._format_list(weights, self._words)
            text.append_text(cells)
        elif step.decoder_self is not None:
            weights = _mean_weights(step.decoder_self)
            text.append_text(self._format_list(weights, find_words(seen[: len(weights)], self._boundary, self._unit)))
        self._print_line(text)

    def _format_scores(self, step: Step | Unit) -> str:
        """Formats the scores of a step, and the mean share that special tokens took of its rows."""
        numbers = [f"{value:.3g}" for value in step.scores.values()]
        if len(numbers) < len(self._scores):
            shares = step.special_shares.get("cross", step.special_shares.get("decoder_self"))
            numbers.append("" if shares is None else f"{float(shares.mean()):.3g}")
        cells = [
            _fit_to_width(number, width, right=True) for number, (_, width) in zip(numbers, self._scores, strict=True)
        ]
        return "".join(f"{cell} " for cell in cells)

    def _print_labels(self, labels: Sequence[str], *, has_names: bool = True) -> None:
        names = [_fit_to_width(name if has_names else "", width, right=True) for name, width in self._scores]
        text = Text(" " * (_LABEL_WIDTH + 1)).append("".join(f"{name} " for name in names), style="dim")
        for word, label, width in zip(self._words if labels else (), labels, self._widths, strict=bool(labels)):
            text.append(_fit_to_width(label, width), style="dim" if word.special else "bold").append(" ")
        self._print_line(text)

    def _format_cells(self, weights: FloatArray) -> Text:
        """Formats one cell for each column: percent on a coloured background, or a shade."""
        text = Text()
        for weight, width in zip(self._word_weights(weights, self._words), self._widths, strict=True):
            if self._has_color:
                label = _format_percent(weight) if width > 1 else ""
                cell = Text(_fit_to_width(label, width), style=self._cell_style(weight))
            else:
                # The square root spreads the many small weights over the few shades.
                shade = self._shades[round(weight**0.5 * (len(self._shades) - 1))]
                cell = Text(_fit_to_width(shade * min(width, 3), width))
            text.append_text(cell).append(" ")
        return text

    def _format_list(self, weights: FloatArray, words: Sequence[Word]) -> Text:
        """Formats the words with the most attention, each with its attention in percent."""
        text = Text()
        ranked = sorted(zip(self._word_weights(weights, words), words, strict=True), key=lambda pair: -pair[0])
        for weight, word in ranked[:_NUM_TOP_WORDS]:
            label = _fit_to_width(word.label, min(_LABEL_WIDTH, cell_len(word.label)))
            entry = f" {label} {weight * 100:.0f} "
            width = cell_len(text.plain) + cell_len(entry) + self._label_width + 2
            if weight < _MIN_VISIBLE_WEIGHT or width > self._console.width:
                break
            text.append(entry, style=self._cell_style(weight) if self._has_color else "").append(" ")
        return text

    def _word_weights(self, weights: FloatArray, words: Sequence[Word]) -> list[float]:
        """Returns a weight from 0 to 1 for each word: its share, or its part of the greatest number of the line."""
        sums = [max(0.0, float(sum(weights[position] for position in word.positions))) for word in words]
        greatest = 1.0 if self._is_share else max(sums, default=0.0) or 1.0
        return [min(1.0, number / greatest) for number in sums]

    def _cell_style(self, weight: float) -> Style:
        """Returns a background colour for a weight from 0 to 1, and a text colour that is readable on it."""
        if weight < _MIN_VISIBLE_WEIGHT:
            return Style()
        if self._console.color_system == "standard":  # this palette has sixteen colours, and no mixtures of them
            thresholds = ((0.5, "black on bright_yellow"), (0.25, "black on yellow"), (0.1, "white on bright_black"))
            return Style.parse(next((style for least, style in thresholds if weight >= least), "bright_black"))
        intensity = 0.12 + 0.88 * weight
        red, green, blue = (int(30 + (channel - 30) * intensity) for channel in _HEAT_COLOR)
        text_color = Color.from_rgb(255, 255, 255) if weight < 0.7 else Color.from_rgb(20, 10, 0)
        return Style(bgcolor=Color.from_rgb(red, green, blue), color=text_color)

    def _print_line(self, text: Text) -> None:
        if self._has_color:
            text.right_crop(1)  # the last gap; more than that could be a cell of the background colour
        else:
            text.rstrip()
        self._console.print(text, overflow="crop", no_wrap=True, crop=True)


def _mean_weights(attention: FloatArray) -> FloatArray:
    """Returns one weight for each position: the mean over all other axes of `[positions, ...]`."""
    return attention.reshape(attention.shape[0], -1).mean(1, dtype=np.float64)


def _fit_columns(words: Sequence[Word], room: int) -> tuple[list[int], bool]:
    """Chooses the width of each word's column, with a space between columns.

    Returns:
        The widths, which are empty if the words do not fit; and whether letters stand below each other.
    """
    widths = [min(_MAX_COLUMN_WIDTH, max(2, cell_len(word.label))) for word in words]
    while max(widths, default=0) > _MIN_COLUMN_WIDTH and sum(widths) + len(widths) > room:
        widest = max(widths)
        widths = [min(width, widest - 1) for width in widths]
    if sum(widths) + len(widths) <= room:
        return widths, False
    has_wide_character = any(cell_len(character) > 1 for word in words for character in word.label)
    for width in (2,) if has_wide_character else (2, 1):
        if len(words) * (width + 1) <= room:
            return [width] * len(words), True
    return [], False


def _split_letters(label: str) -> list[str]:
    """Splits a word into letters, each with its combining characters. An ellipsis replaces letters beyond the limit."""
    letters: list[str] = []
    for character in label:
        if letters and (cell_len(character) == 0 or letters[-1].endswith(_ZERO_WIDTH_JOINER)):
            letters[-1] += character
        else:
            letters.append(character)
    return letters if len(letters) <= _MAX_HEADER_HEIGHT else [*letters[: _MAX_HEADER_HEIGHT - 1], "⋮"]


def _format_percent(weight: float) -> str:
    return f"{min(weight * 100, 99):.0f}" if weight >= _MIN_VISIBLE_WEIGHT else ""


def _fit_to_width(text: str, width: int, *, right: bool = False) -> str:
    """Cuts or pads a text to exactly `width` terminal cells. A wide character takes two cells."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
