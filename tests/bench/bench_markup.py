"""Markup: the time of pages, and the tags of glossary terms and of EUR-Lex at the places that translators chose.

The targets are given, and links come from the Align calls of a server on the bundled model: as calibrated, by the mean
of the last layer, and by the first head of the last layer. `--limit` measures a part of the lines.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table
from sidelight.client import AlignOptions, Client, LinkOptions, Markup
from sidelight.server.alignment import Link, LinkedSegment, MarkupOptions, parse_markup
from sidelight.server.models import load
from sidelight.server.text import find_words

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from harness import serving

DATA = Path(__file__).parents[3] / "shared" / "data" / "markup-en-de"
NUM_ELEMENTS = (200, 2_000)
TAG = re.compile(r"<[^>]*>")
NAIVE = LinkOptions(method="argmax", features=["attention"])
NUM_RUNNING = 16


def main() -> int:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, help="how many lines of each file are measured; without it, all")
    args = parser.parse_args()
    console = Console(width=120)
    table = Table("elements of a page", "ms of processor time", "µs an element")
    for num_elements in NUM_ELEMENTS:
        seconds = statistics.median(_time_page(num_elements // 4) for _ in range(5))
        table.add_row(f"{num_elements:,}", f"{seconds * 1e3:.1f}", f"{seconds * 1e6 / num_elements:.0f}")
    console.print(table)
    if not DATA.exists():
        console.print(f"skipped: {DATA} is not here")
        return 0
    loaded = load()
    last = loaded.attention_layers.num_layers("cross") - 1
    kinds: dict[str, AlignOptions] = {
        "as calibrated": {},
        "last layer, mean": {"layers": [last], "link_options": NAIVE},
        "last layer, first head": {"heads": [(last, 0)], "link_options": NAIVE},
    }
    table = Table(
        "lines",
        "links",
        "no text",
        "tags",
        "tags lost",
        "malformed",
        "other text",
        "at the place",
        "elements exact",
        "overlap",
    )
    with serving(loaded) as address, Client(address) as client:
        for name in ("dev-glossary", "dev-eurlex"):
            for kind, options in kinds.items():
                table.add_row(f"{name}", kind, *_compare(client, name, args.limit, options))
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


def _compare(client: Client, name: str, limit: int | None, options: AlignOptions) -> list[str]:
    """Has the tags of English lines placed in the German lines."""
    sources = (DATA / f"{name}.en").read_text().splitlines()[:limit]
    references = (DATA / f"{name}.de").read_text().splitlines()[:limit]
    targets = [_strip(reference) for reference in references]
    num_empty = targets.count("")  # a line with a tag and no text: there is nothing to align
    sources = [source for source, target in zip(sources, targets, strict=True) if target]
    references = [reference for reference, target in zip(references, targets, strict=True) if target]
    targets = list(filter(None, targets))
    pairs = list(zip(sources, targets, strict=True))
    stream = client.align_many(pairs, max_running=NUM_RUNNING, markup=Markup("xliff"), **options)
    num_lost = num_malformed = num_different = num_same = num_tags = num_exact = num_overlapping = num_elements = 0
    for source, target, reference, result in zip(sources, targets, references, stream, strict=True):
        if result.alignment is None:
            raise RuntimeError(f"{source}: {result.error}")
        text = result.alignment.marked_target_text
        num_lost += Counter(TAG.findall(text)) != Counter(TAG.findall(source))
        try:
            num_different += _strip(text) != target
        except ElementTree.ParseError:
            num_malformed += 1
            continue
        places, expected = _find_places(text), _find_places(reference)
        num_same += sum((places & expected).values())
        num_tags += sum(expected.values())
        spans, expected_spans = _find_elements(text), _find_elements(reference)
        num_elements += len(expected_spans)
        for tag, (begin, end) in expected_spans.items():
            span = spans.get(tag, (0, 0))
            num_exact += span == (begin, end)
            num_overlapping += span[0] < end and begin < span[1] and span[0] < span[1]
    counts = (num_empty, num_tags, num_lost, num_malformed, num_different)
    shares = (num_same / num_tags, num_exact / num_elements, num_overlapping / num_elements)
    return [*(f"{count:,}" for count in counts), *(f"{share:.3f}" for share in shares)]


def _strip(text: str) -> str:
    return "".join(ElementTree.fromstring(f"<r>{text}</r>").itertext())


def _find_places(text: str) -> Counter[tuple[str, int]]:
    """Returns each tag with the number of characters before, white space not counted."""
    return Counter(
        (match.group(), len("".join(TAG.sub("", text[: match.start()]).split()))) for match in TAG.finditer(text)
    )


def _find_elements(text: str) -> dict[str, tuple[int, int]]:
    """Returns by its start tag the text that each element with text covers, white space not counted."""
    spans: dict[str, tuple[int, int]] = {}
    open_tags: list[tuple[str, int]] = []
    length = end = 0
    for match in TAG.finditer(text):
        length += len("".join(text[end : match.start()].split()))
        end = match.end()
        if match.group().startswith("</"):
            tag, begin = open_tags.pop()
            if begin < length:
                spans[tag] = begin, length
        elif not match.group().endswith("/>"):
            open_tags.append((match.group(), length))
    return spans


if __name__ == "__main__":
    sys.exit(main())
