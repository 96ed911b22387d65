"""Links in the terminal: lines that lead from each source word to its target words, for drawn alignments."""

from __future__ import annotations

import random

import pytest
from rich.cells import cell_len
from sidelight.client import Alignment, Link
from sidelight.client.offset_units import Span
from sidelight.client.views import draw_links

UP, DOWN, LEFT, RIGHT = (-1, 0), (1, 0), (0, -1), (0, 1)
# Where a line goes on that comes into a cell by a direction. At a crossing, it goes straight on.
ENDS = {"│": {UP, DOWN}, "─": {LEFT, RIGHT}, "╯": {UP, LEFT}, "╮": {DOWN, LEFT}, "╰": {UP, RIGHT}, "╭": {DOWN, RIGHT}}


def make_alignment(source: list[str], target: list[str], pairs: list[tuple[int, int]]) -> Alignment:
    spans = [tuple(Span(0, len(word), word) for word in words) for words in (source, target)]
    links = tuple(Link(*pair, 0.5) for pair in sorted(pairs, key=lambda pair: pair[::-1]))
    return Alignment("", "", " ".join(source), " ".join(target), spans[0], spans[1], links, "", "")


def test_lines_of_a_pair():
    alignment = make_alignment(["one", "two", "three"], ["drei", "eins"], [(2, 0), (0, 1)])
    lines = draw_links(alignment)
    assert (lines[0], lines[-1]) == ("one two three", "drei eins")
    assert draw_links(alignment, ascii_only=True)[1:-1] == [
        line.translate(str.maketrans("│─╯╮╰╭┼", "|-++++*")) for line in lines[1:-1]
    ]


@pytest.mark.parametrize("seed", range(30))
def test_each_line_leads_from_a_source_word_to_its_target_word(seed):
    """Links of one word each, so that no line has a fork."""
    draw = random.Random(seed)
    source = [draw.choice(["a", "an", "the", "house", "漢字", "."]) for _ in range(draw.randint(1, 12))]
    target = [draw.choice(["ein", "das", "Haus", "字", "!", "x"]) for _ in range(draw.randint(1, 12))]
    count = draw.randint(0, min(len(source), len(target)))
    pairs = list(zip(draw.sample(range(len(source)), count), draw.sample(range(len(target)), count), strict=True))
    lines = draw_links(make_alignment(source, target, pairs))
    assert sorted(follow_all(lines)) == sorted(pairs)


def follow_all(lines: list[str]) -> list[tuple[int, int]]:
    first, *middle, last = lines
    sources, targets = word_of_column(first), word_of_column(last)
    found = []
    for column, sign in enumerate(middle[0] if middle else ""):
        if sign in "│╯╰┼" and column in sources and column % 2 == 0:
            row, place, step = 0, column, DOWN
            while row < len(middle):
                sign = middle[row][place]
                if sign != "┼":
                    step = (ENDS[sign] - {(-step[0], -step[1])}).pop()
                row, place = row + step[0], place + step[1]
            found.append((sources[column], targets[place]))
    return found


def word_of_column(line: str) -> dict[int, int]:
    words: dict[int, int] = {}
    column = number = 0
    for part in line.split(" "):
        for cell in range(cell_len(part)):
            words[column + cell] = number
        number += bool(part)
        column += cell_len(part) + 1
    return words
