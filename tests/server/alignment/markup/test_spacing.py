"""White space beside placeholders, entities and points: the target has what the source has, wherever they stand."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sidelight.server.alignment import Link, LinkedSegment, MarkupFormat, MarkupOptions, parse_markup
from sidelight.server.alignment.markup.placement.white_space import WhiteSpace
from sidelight.server.text import find_words

PLACEHOLDERS = ["%s", "{name}", "{{ x }}", "__y__", "%1$s"]
POINTS = ["<img/>", "<i></i>"]
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@st.composite
def sources(draw: st.DrawFn, names: list[str]) -> str:
    """Draws words, marks and names. A name may touch its neighbours, but two words never touch without the names."""
    items = draw(st.lists(st.sampled_from(["word", "word", *names]), min_size=2, max_size=8))
    source = ""
    for number, item in enumerate(items):
        is_beside_name = number > 0 and (item in names or items[number - 1] in names)
        between = draw(st.sampled_from([" ", " ", ", ", " (", ") ", *[""] * 3 * is_beside_name])) if number else ""
        source += between + (item if item in names else f"w{number}")
    return re.sub(rf"(\d(?:{join(names)})+)(?=w)", r"\1 ", source)


def join(names: list[str]) -> str:
    return "|".join(map(re.escape, names))


def lose(source: str, names: list[str]) -> str:
    """What a model writes that keeps the words and the marks, and loses the names."""
    target = re.sub(r"\s+", " ", re.sub(join(names), "", source)).strip()
    return re.sub(r"\s+(?=[,)])|(?<=\()\s+", "", target).upper()


def translate(source: str, names: list[str], options: MarkupOptions) -> str:
    """Gives the target of a source whose words are linked in their order, and whose names are lost."""
    document = parse_markup(source, options)
    pairs: list[LinkedSegment] = []
    for segment in document.segments:
        target = lose(source, names)
        source_words, target_words = find_words(segment.text), find_words(target)
        links: list[Link] = []
        for number, (first, last) in enumerate(source_words):
            begin, end = target_words[len(links)] if len(links) < len(target_words) else (0, 0)
            # What stands for a name and touches a word is a part of the word.
            if begin < end and target[begin:end].lower() in segment.text[first:last]:
                links.append(Link(number, len(links), 1.0))
        pairs.append(LinkedSegment(target, source_words, target_words, links))
        assert len(links) == len(target_words)
    marked = document.place(pairs)
    assert re.sub("<[^>]*>", "", marked.text).strip() == marked.target_text.strip()
    return marked.text


def expect(source: str) -> str:
    return re.sub(r"w(?=\d)", "W", source)


@QUICK
@given(source=sources(PLACEHOLDERS), has_target=st.booleans())
def test_white_space_beside_lost_placeholders_is_that_of_the_source(source: str, has_target: bool) -> None:
    options = MarkupOptions("placeholders", has_target=has_target)
    assert translate(source, PLACEHOLDERS, options) == expect(source)


@pytest.mark.parametrize("markup_format", ["html", "xml", "xliff"])
@QUICK
@given(source=sources(POINTS))
def test_white_space_beside_points_is_that_of_the_source(markup_format: MarkupFormat, source: str) -> None:
    assert translate(source, POINTS, MarkupOptions(markup_format)) == expect(source)


@pytest.mark.parametrize(
    ("markup_format", "source", "target", "expected"),
    [
        # A given target has the white space that it has, on the side of the tag where the source has some.
        ("xliff", "w0 <x/> <x/> w1", "W0   W1", "W0 <x/> <x/> W1"),
        ("xliff", "w0 <x/> w1", "W0  W1", "W0 <x/> W1"),
        ("xliff", "w0 <x/> w1", "W0 W1", "W0 <x/>W1"),
        ("xliff", "w0 <g> w1 </g> w2", "W0  W1  W2", "W0 <g> W1 </g> W2"),
        ("xliff", "w0 <g> w1 </g> w2", "W0 W1 W2", "W0 <g>W1</g> W2"),
        ("html", "w0<b> w1</b> w2", "W0 W1 W2", "W0<b> W1</b> W2"),
        ("html", "w0 <img> w1", "W0 W1", "W0 <img>W1"),
        ("placeholders", "w0 %s", "W0。", "W0 %s。"),
        ("placeholders", "w0\u00a0{a}, w1", "W0, W1", "W0\u00a0{a}, W1"),
        ("placeholders", '"{a}" w1', '"" W1', '"{a}" W1'),
    ],
)
def test_white_space_of_given_targets(markup_format: MarkupFormat, source: str, target: str, expected: str) -> None:
    document = parse_markup(source, MarkupOptions(markup_format, has_target=True))
    text = document.segments[0].text
    source_words, target_words = find_words(text), find_words(target)
    names = [target[slice(*word)].lower() for word in target_words]
    links = [
        Link(number, names.index(text[slice(*word)]), 1.0)
        for number, word in enumerate(source_words)
        if text[slice(*word)] in names
    ]
    assert document.place([LinkedSegment(target, source_words, target_words, links)]).text == expected


def test_numbers_keep_their_elements() -> None:
    source = "<td>12 <b>34</b> 56</td> <td>7 <img> 8, <i>9</i></td>"
    assert parse_markup(source, MarkupOptions("html")).place([]).text == source


@given(st.text(" a\t\u00a0b", max_size=12))
def test_white_space_reaches_as_far_as_it_does(text):
    space = WhiteSpace(text)
    for offset in range(len(text) + 1):
        assert space.begin_before(offset) == len(text[:offset].rstrip())
        assert space.end_behind(offset) == len(text) - len(text[offset:].lstrip())
