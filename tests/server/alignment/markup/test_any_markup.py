"""Generated fragments: whatever the markup and the links are, no tag is lost and the target text stays as it is."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from typing import get_args
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sidelight.server.alignment import (
    Link,
    LinkedSegment,
    MarkedTarget,
    MarkupDocument,
    MarkupFormat,
    MarkupOptions,
    MarkupSpan,
    parse_markup,
)
from sidelight.server.text import find_words

WORDS = ["a", "Haus", "un", "-", ".", ",", "!", "(", "&amp;", "&lt;", "&#233;", "é", "日本", "x1", "&quot;", ">", "'"]
SPACES = ["", "", " ", " ", "\n"]
ATTRIBUTES = ["", " id='1'", ' class="a  b"', " href='?a=1&amp;b=2'", ' title="x&gt;y>"']
INLINE = ["b", "i", "span", "a"]
POINTS = ["<img/>", "<wbr/>", "<!-- c > -->", "<?pi x?>", "<x id='1'/>", "<br/>"]
BLOCKS = ["p", "li", "div"]
VERBATIM = [
    "<code>{}</code>",
    "<script>{}</script>",
    "<b translate='no'>{}</b>",
    "<i class='notranslate'><u>{}</u></i>",
]
FORMATS = st.sampled_from(["html", "xml", "xliff"])
PLACEHOLDERS = ["%s", "{name}", "{{ x }}", "__y__", "%1$s"]


def fragments(with_placeholders: bool) -> st.SearchStrategy[str]:
    texts = st.builds(str.__add__, st.sampled_from(WORDS + PLACEHOLDERS * with_placeholders), st.sampled_from(SPACES))
    leaves = texts | st.sampled_from(POINTS) | st.builds(str.format, st.sampled_from(VERBATIM), st.sampled_from(WORDS))
    leaves |= st.just("")

    def wrap(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        names = st.sampled_from(INLINE * 3 + BLOCKS)
        return st.lists(
            inner | st.builds("<{0}{1}>{2}</{0}>".format, names, st.sampled_from(ATTRIBUTES), inner), max_size=6
        ).map("".join)

    return st.recursive(leaves, wrap, max_leaves=25)


TARGET_PARTS = ["der", "Haus", "un", ",", ".", " ", " ", "&", "<", "é", "日本", "%s", "{Name}", "\n"]
TARGETS = st.lists(st.sampled_from(TARGET_PARTS)).map("".join)
BROKEN = ["<", ">", "&", "a", "b", "/", "!--", "--", "'", '"', "=", "\r\n", "\r", "\0", "amp;", "script", "</>"]
BROKEN += ["<b>", "</i>", "[CDATA[", "é"]


@st.composite
def links(draw: st.DrawFn, source: str, target: str) -> LinkedSegment:
    source_words, target_words = find_words(source), find_words(target)
    found: list[Link] = []
    if source_words and target_words:
        pairs = st.tuples(st.integers(0, len(source_words) - 1), st.integers(0, len(target_words) - 1))
        scores = st.sampled_from([0.1, 0.5, 1.0])
        found = [Link(*pair, draw(scores)) for pair in draw(st.lists(pairs, unique=True, max_size=20))]
    return LinkedSegment(target, source_words, target_words, found)


def draw_target(data: st.DataObject, document: MarkupDocument) -> tuple[MarkedTarget, list[LinkedSegment]]:
    pairs: list[LinkedSegment] = []
    for segment in document.segments:
        # Mostly what a model would write: some words of the source among others.
        target = data.draw(TARGETS | st.just(segment.text) | st.just(segment.text.upper()))
        pairs.append(data.draw(links(segment.text, target)))
    return document.place(pairs), pairs


class Tokens(HTMLParser):
    """A second opinion on HTML: the tags of a text, and the text without tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags[self.get_starttag_text() or ""] += 1
        if tag not in ("img", "wbr", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags[self.get_starttag_text() or ""] += 1

    def handle_endtag(self, tag: str) -> None:
        self.tags[f"</{tag}>"] += 1
        assert self.open.pop() == tag

    def handle_comment(self, data: str) -> None:
        self.tags[f"<!--{data}-->"] += 1

    def handle_data(self, data: str) -> None:
        self.text += "" if self.open[-1:] == ["script"] else data


def squeeze(text: str) -> str:
    return re.sub(r"\s+", "", text)


def check_fragment(data: st.DataObject, markup_format: MarkupFormat) -> None:
    source = data.draw(fragments(with_placeholders=True))
    if markup_format == "xliff":  # XLIFF has no scripts
        source = source.replace("script>", "mrk>")
    has_target = data.draw(st.booleans())
    options = MarkupOptions(
        markup_format, has_placeholders=True, has_target=has_target, splits_sentences=data.draw(st.booleans())
    )
    document = parse_markup(source, options)
    marked, pairs = draw_target(data, document)
    before, after = Tokens(source), Tokens(marked.text)
    assert after.tags == before.tags, "every tag once, with its attributes"
    if markup_format != "html":
        ElementTree.fromstring(f"<r>{marked.text}</r>")
    kept = squeeze(marked.target_text)
    if document.source_text:
        # Without words the source has flows of nothing: what it keeps is no part of the target text.
        assert is_inside(kept, squeeze(after.text)), "the target text is kept"
    if not has_placeholder(source) and "translate" not in source and "<code" not in source and has_target:
        assert marked.target_text == pairs[0].target_text
    assert [report.markup for report in marked.reports if report.markup in PLACEHOLDERS] == find_placeholders(source)
    for report in marked.reports:
        assert 0 <= report.source[0] <= report.source[1] <= len(document.source_text)
        assert 0 <= report.target[0] <= report.target[1] <= len(marked.target_text)
    assert all(0 <= begin <= end <= len(marked.target_text) for begin, end in marked.target_words)
    assert len(marked.target_words) >= sum(len(pair.target_words) for pair in pairs)


def check_spans(data: st.DataObject) -> None:
    source = "the big house, and more."
    offsets = st.tuples(st.integers(0, len(source)), st.integers(0, len(source))).map(sorted)
    spans = [MarkupSpan(str(number), *pair) for number, pair in enumerate(data.draw(st.lists(offsets, max_size=8)))]
    document = parse_markup(source, MarkupOptions("spans", spans, has_target=data.draw(st.booleans())))
    marked, pairs = draw_target(data, document)
    assert marked.target_text == pairs[0].target_text == marked.text
    assert [span.id for span in marked.spans] == [span.id for span in spans]
    assert all(0 <= span.begin <= span.end <= len(marked.target_text) for span in marked.spans)


def check_placeholders(data: st.DataObject) -> None:
    parts = st.lists(st.sampled_from(["a ", "Haus ", ", ", *PLACEHOLDERS, " ", "\n"]), min_size=1).map("".join)
    source = data.draw(parts)
    document = parse_markup(source, MarkupOptions("placeholders", has_target=False))
    marked, _ = draw_target(data, document)
    assert [report.markup for report in marked.reports] == find_placeholders(source)
    for placeholder in ("{{ x }}", "{name}", "__y__", "%1$s"):
        assert marked.text.count(placeholder) == source.count(placeholder)
    assert marked.text.count("%s") >= source.count("%s")  # the target has its own as well


def check(data: st.DataObject, markup_format: MarkupFormat) -> None:
    if markup_format == "spans":
        check_spans(data)
    elif markup_format == "placeholders":
        check_placeholders(data)
    else:
        check_fragment(data, markup_format)


def is_inside(part: str, whole: str) -> bool:
    """Whether all characters of a text come in the same order in another text."""
    characters = iter(whole)
    return all(character in characters for character in part)


def find_placeholders(source: str) -> list[str]:
    return re.findall(r"%1\$s|%s|\{name\}|\{\{ x \}\}|__y__", source)


def has_placeholder(source: str) -> bool:
    return any(placeholder in source for placeholder in PLACEHOLDERS)


QUICK = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)


@pytest.mark.parametrize("markup_format", get_args(MarkupFormat))
@QUICK
@given(data=st.data())
def test_no_tag_is_lost(markup_format: MarkupFormat, data: st.DataObject) -> None:
    check(data, markup_format)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("markup_format", get_args(MarkupFormat))
@settings(QUICK, max_examples=2_000, derandomize=False)
@given(data=st.data())
def test_no_tag_is_lost_in_10_000_fragments(markup_format: MarkupFormat, data: st.DataObject) -> None:
    check(data, markup_format)


@QUICK
@given(data=st.data())
def test_a_single_flow_gives_the_target_exactly(data: st.DataObject) -> None:
    inline = fragments(with_placeholders=False).filter(
        lambda text: not re.search(r"<(p|li|div|br|code|script)|transl", text)
    )
    document = parse_markup(data.draw(inline), MarkupOptions("html", has_target=True))
    marked, pairs = draw_target(data, document)
    assert marked.target_text == pairs[0].target_text
    if document.source_text and document.source_text == document.source_text.strip():
        text = Tokens(marked.text).text
        assert text.strip() == pairs[0].target_text.strip()


@QUICK
@given(data=st.data())
def test_any_text_is_kept_as_html(data: st.DataObject) -> None:
    source = data.draw(st.lists(st.sampled_from(BROKEN)).map("".join))
    document = parse_markup(source, MarkupOptions(data.draw(FORMATS), is_strict=False))
    marked = document.place([LinkedSegment(item.text, find_words(item.text), [], []) for item in document.segments])
    assert Counter(re.findall(r"</?[a-z]+>|</>|<!--", marked.text)) == Counter(
        re.findall(r"</?[a-z]+>|</>|<!--", source)
    )


DEEP = ["<b>" * 10_000 + "a b" + "</b>" * 10_000, "<b>a " * 1_000 + "</b>" * 1_000]
WIDE = ["<b>a " * 1_000, "a <b>b</b> " * 1_000]


@pytest.mark.parametrize("source", DEEP + WIDE)
def test_many_and_deep_tags_are_placed(source: str) -> None:
    document = parse_markup(source, MarkupOptions("html"))
    text = document.segments[0].text
    words = find_words(text)
    marked = document.place([LinkedSegment(text, words, words, [Link(i, i, 1.0) for i in range(len(words))])])
    assert marked.text.count("<b>") == source.count("<b>")
    assert marked.text.replace("</b>", "").replace("<b>", "").split() == text.split()
