"""Markup: the time of pages, and the tags of EUR-Lex at the places that translators chose.

Links here are simple: identical words, otherwise the diagonal. So the shares say what is left to better links.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from sidelight.server.alignment import Link, LinkedSegment, MarkupOptions, parse_markup
from sidelight.server.text import find_words

DATA = Path(__file__).parents[3] / "shared" / "data" / "markup-en-de"
NUM_ELEMENTS = (200, 2_000)
TAG = re.compile(r"<[^>]*>")


def main() -> int:
    """Prints both tables."""
    console = Console(width=100)
    table = Table("elements of a page", "ms of processor time", "µs an element")
    for num_elements in NUM_ELEMENTS:
        seconds = statistics.median(_time_page(num_elements // 4) for _ in range(5))
        table.add_row(f"{num_elements:,}", f"{seconds * 1e3:.1f}", f"{seconds * 1e6 / num_elements:.0f}")
    console.print(table)
    if not DATA.exists():
        console.print(f"skipped: {DATA} is not here")
        return 0
    table = Table("pairs", "lines", "tags lost", "not well-formed", "text differs", "at the reference's place")
    for name in ("dev-eurlex", "dev-glossary"):
        table.add_row(name, *_compare(name))
    console.print(table)
    return 0


def _time_page(num_paragraphs: int) -> float:
    """Returns the processor time to read a page with four elements a paragraph, and to place these, in seconds."""
    paragraph = "<p>This is <b>word {0}</b> and <a href='x{0}'>a <i>link</i></a>.</p>\n"
    page = "".join(paragraph.format(number) for number in range(num_paragraphs))
    pairs: list[LinkedSegment] = []
    for segment in parse_markup(page, MarkupOptions("html")).segments:
        words = find_words(segment.text)
        links = [Link(number, number, 1.0) for number in range(len(words))]
        pairs.append(LinkedSegment(segment.text, words, words, links))
    begin = time.process_time()
    parse_markup(page, MarkupOptions("html")).place(pairs)
    return time.process_time() - begin


def _compare(name: str) -> list[str]:
    """Places the tags of English lines in the German lines."""
    sources = (DATA / f"{name}.en").read_text().splitlines()
    references = (DATA / f"{name}.de").read_text().splitlines()
    num_lost = num_malformed = num_different = num_same = num_tags = 0
    for source, reference in zip(sources, references, strict=True):
        document = parse_markup(source, MarkupOptions("xliff", has_target=True))
        target = "".join(ElementTree.fromstring(f"<r>{reference}</r>").itertext())
        text = document.place([_link(document.segments[0].text, target)]).text
        num_lost += Counter(TAG.findall(text)) != Counter(TAG.findall(source))
        try:
            num_different += "".join(ElementTree.fromstring(f"<r>{text}</r>").itertext()) != target
        except ElementTree.ParseError:
            num_malformed += 1
        places, expected = _find_places(text), _find_places(reference)
        num_same += sum((places & expected).values())
        num_tags += sum(expected.values())
    return [f"{len(sources):,}", *map(str, (num_lost, num_malformed, num_different)), f"{num_same / num_tags:.3f}"]


def _find_places(text: str) -> Counter[tuple[str, int]]:
    """Returns each tag with the number of characters before, white space not counted."""
    return Counter(
        (match.group(), len("".join(TAG.sub("", text[: match.start()]).split()))) for match in TAG.finditer(text)
    )


def _link(source: str, target: str) -> LinkedSegment:
    source_words, target_words = find_words(source), find_words(target)
    numbers: dict[str, list[int]] = {}
    for number, (begin, end) in enumerate(target_words):
        numbers.setdefault(target[begin:end].lower(), []).append(number)
    links: list[Link] = []
    for number, (begin, end) in enumerate(source_words):
        diagonal = number * len(target_words) // len(source_words)
        same = numbers.get(source[begin:end].lower(), [])
        if same:
            links.append(Link(number, min(same, key=lambda other: abs(other - diagonal)), 0.9))
        elif target_words:
            links.append(Link(number, diagonal, 0.3))
    return LinkedSegment(target, source_words, target_words, links)


if __name__ == "__main__":
    sys.exit(main())
