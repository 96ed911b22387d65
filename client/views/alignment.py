"""Word links in the terminal: two lines of words with lines between them, and a table of the links.

This module knows alignments and rich; it knows no connections.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..alignments import Alignment
from ..offset_units import Span
from ..results import WordAlignment
from .terminal import escape_controls

# Which ends of a cell have a line. Together they say which sign stands in the cell.
_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_SIGNS = " │││─╯╮┤─╰╭├─┴┬┼"
_ASCII_SIGNS = " |||-++|-++|-++*"


def print_alignment(console: Console, alignment: Alignment | WordAlignment) -> None:
    """Prints two lines of words with lines between them, if the terminal is wide enough, and a table of the links."""
    lines = draw_links(alignment, ascii_only=not console.encoding.lower().startswith("utf"))
    if lines and max(map(cell_len, lines)) < console.width:
        console.print()
        for number, line in enumerate(lines):
            style = "bold" if number in (0, len(lines) - 1) else ""
            console.print(Text(line, style), no_wrap=True, crop=True)
        console.print()
    table = Table(box=None, pad_edge=False)
    table.add_column("source", justify="right")
    table.add_column("target")
    table.add_column("score", justify="right")
    for source, target, score in alignment.links:
        words = alignment.source[source], alignment.target[target]
        table.add_row(*(Text(escape_controls(word.label)) for word in words), Text(f"{score:.2f}"))
    if alignment.links:
        console.print(table)


def draw_links(alignment: Alignment | WordAlignment, *, ascii_only: bool = False) -> list[str]:
    """Draws the words of the source, lines, and the words of the target. Returns the lines of text; none without words.

    Lines go down from source words in even columns, and down to target words in odd columns. So lines that go down are
    never on top of one another.
    """
    if not alignment.source or not alignment.target:
        return []
    source_line, source_columns = _lay_out(alignment.source, 0)
    target_line, target_columns = _lay_out(alignment.target, 1)
    ends = [(source_columns[link.source], target_columns[link.target]) for link in alignment.links]
    lanes: list[list[tuple[int, int]]] = []
    width = max(cell_len(source_line), cell_len(target_line)) + 2
    chosen = [_find_lane(lanes, min(pair), max(pair)) for pair in ends]
    cells = [[0] * width for _ in lanes]
    for (begin, end), lane in zip(ends, chosen, strict=True):
        _draw_line(cells, begin, end, lane)
    signs = _ASCII_SIGNS if ascii_only else _SIGNS
    middle = ["".join(signs[cell] for cell in row).rstrip() for row in cells]
    return [source_line, *middle, target_line]


def _lay_out(words: Sequence[Span], parity: int) -> tuple[str, list[int]]:
    """Returns a line of words, and the column of each word where its lines end: an even one, or an odd one."""
    line, column = "", 0
    columns: list[int] = []
    for word in words:
        label = escape_controls(word.label)
        # A word needs a column of the parity.
        if cell_len(label) == 1 and column % 2 != parity:
            line, column = line + " ", column + 1
        middle = column + (cell_len(label) - 1) // 2
        if middle % 2 != parity:
            middle += 1 if middle + 1 < column + cell_len(label) else -1
        columns.append(middle)
        line, column = f"{line}{label} ", column + cell_len(label) + 1
    return line.rstrip(), columns


def _find_lane(lanes: list[list[tuple[int, int]]], begin: int, end: int) -> int:
    """Returns the first lane with room for a line between two columns, and takes the room."""
    for number, taken in enumerate(lanes):
        if all(end < other_begin or other_end < begin for other_begin, other_end in taken):
            taken.append((begin, end))
            return number
    lanes.append([(begin, end)])
    return len(lanes) - 1


def _draw_line(cells: list[list[int]], source: int, target: int, lane: int) -> None:
    for row in cells[:lane]:
        row[source] |= _UP | _DOWN
    for row in cells[lane + 1 :]:
        row[target] |= _UP | _DOWN
    begin, end = min(source, target), max(source, target)
    for column in range(begin + 1, end):
        cells[lane][column] |= _LEFT | _RIGHT
    cells[lane][source] |= _UP | (_RIGHT if source < target else _LEFT)
    cells[lane][target] |= _DOWN | (_LEFT if source < target else _RIGHT)
