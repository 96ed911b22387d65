"""English-German pairs whose links and marked targets a person has checked, linked by the bundled model over a socket.

A line of the file is: source, tab, marked target, tab, links. "has eaten" comes apart in German: the element covers one
part.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sidelight.client import Alignment, Client, Markup

FILE = Path(__file__).parent / "hand_checked.tsv"
CASES = [line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def alignments(bundled_server) -> list[Alignment]:
    pairs = [(source, re.sub(r"<[^>]*>", "", marked)) for source, marked, _ in CASES]
    with Client(bundled_server) as client:
        return [result.get() for result in client.align_many(pairs, markup=Markup("html"))]


def test_markup_comes_to_the_words_that_it_belongs_to(alignments):
    assert len(CASES) >= 40
    wrong = [
        (alignment.marked_target_text, marked)
        for alignment, (_, marked, _) in zip(alignments, CASES, strict=True)
        if alignment.marked_target_text != marked
    ]
    assert len(wrong) <= 2, wrong


def test_links_are_those_of_a_person(alignments):
    num_found = num_gold = num_right = 0
    for alignment, (_, _, links) in zip(alignments, CASES, strict=True):
        found, gold = set(alignment.pharaoh.split()), set(links.split())
        num_found, num_gold, num_right = num_found + len(found), num_gold + len(gold), num_right + len(found & gold)
    assert 1 - 2 * num_right / (num_found + num_gold) <= 0.05  # the alignment error rate
