"""The picture of word links: a curve for each link, and bars for the row of each target word."""

from __future__ import annotations

import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from sidelight.client import Alignment, Capture, Client, Link, save
from sidelight.client.offset_units import Span, Token
from sidelight.client.results import WordAlignment
from sidelight.client.views import render_alignment_svg, render_page
from sidelight.client.views.alignment_picture import attention_rows

SVG = "{http://www.w3.org/2000/svg}"


def make_words(*labels: str) -> tuple[Span, ...]:
    """Words of a text with one space between them."""
    begins = np.cumsum([0, *(len(label) + 1 for label in labels)])
    return tuple(Span(int(begin), int(begin) + len(label), label) for begin, label in zip(begins, labels, strict=False))


def test_svg_has_a_curve_for_each_link_and_the_row_of_each_word():
    source, target = make_words("a<b", "&", "long", "tail"), make_words("x", '"y"', "z")
    links = (Link(0, 0, 0.5), Link(2, 1, 1.0), Link(3, 1, 0.25))
    alignment = Alignment("", "", "", "", source, target, links, "", "")
    root = ElementTree.fromstring(render_alignment_svg(alignment))
    words = root.findall(f"{SVG}g[@class='word']")
    assert [text.text for text in root.findall(f"{SVG}text")] == ["a<b", "&", "long", "tail"]
    assert [word.find(f"{SVG}text[@class='target']").text for word in words] == ["x", '"y"', "z"]
    assert [[int(path.get("data-s")) for path in word.findall(f"{SVG}path")] for word in words] == [[0], [2, 3], []]
    assert words[1].find(f"{SVG}path/{SVG}title").text == 'long – "y": 1.00\n\n1.00  long\n0.25  tail'
    places = [float(text.get("x")) for text in root.findall(f"{SVG}text")]
    bars = words[1].findall(f"{SVG}g/{SVG}rect")
    assert [float(bar.get("x")) + 6 for bar in bars] == pytest.approx([places[2], places[3]])
    assert float(bars[0].get("height")) == pytest.approx(4 * float(bars[1].get("height")))


@pytest.fixture
def linked(fake):
    """An attribution with links whose words have several tokens, and no tokens for one word."""
    with Client(fake.address) as client:
        result = client.attribute("one two three", capture=Capture(kinds=("cross",))).result()
    num_positions, num_steps = result.cross.shape[:2]
    alignment = WordAlignment(make_words("ab", "c"), make_words("de", "f", "gone"), (Link(1, 0, 0.75),), "1-0", None)
    positions = [Token(0, "", *span, False, "") for span in [(0, 1), (1, 2), (3, 4), *[(0, 0)] * num_positions]]
    steps = [Token(0, "", *span, False, "") for span in [(0, 1), (1, 2), (3, 4), *[(0, 0)] * num_steps]]
    started = dataclasses.replace(result.started, source=tuple(positions[:num_positions]))
    return dataclasses.replace(result, started=started, steps=tuple(steps[:num_steps]), alignment=alignment)


def test_rows_of_words_sum_positions_and_average_steps(linked):
    cross = linked.cross.mean(axis=(2, 3))
    rows = attention_rows(linked, linked.alignment)
    expected = [[cross[:2, :2].sum(axis=0).mean(), cross[2, :2].mean()], [cross[:2, 2].sum(), cross[2, 2]], [0, 0]]
    np.testing.assert_allclose(rows, expected, rtol=1e-5)


def test_rows_without_cross_attention_are_the_scores_of_the_links(linked):
    rows = attention_rows(dataclasses.replace(linked, cross=None), linked.alignment)
    assert rows.tolist() == [[0, 0.75], [0, 0], [0, 0]]


def test_page_of_an_attribution_has_the_picture_and_the_lines_of_each_word(linked, tmp_path):
    save(linked, tmp_path / "out.html")
    page = (tmp_path / "out.html").read_text("utf-8")
    (data,) = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["links"]["rows"] == [[0, 1], [2], []]
    root = ElementTree.fromstring(data["links"]["picture"])
    assert [path.get("data-s") for path in root.iter(f"{SVG}path")] == ["1"]
    (plain,) = json.loads(
        re.search(r'id="data">(.*?)</script>', render_page([dataclasses.replace(linked, alignment=None)]).decode())[1]
    )
    assert plain["links"] is None
