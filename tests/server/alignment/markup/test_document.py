"""Markup of a source in the target: rules of placement, format by format."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from sidelight.server.alignment import (
    Link,
    LinkedSegment,
    MarkedTarget,
    MarkupOptions,
    MarkupSpan,
    parse_markup,
)
from sidelight.server.alignment.markup.placement.writer import _Move, _move
from sidelight.server.errors import RequestError
from sidelight.server.text import find_words


def link(source: str, target: str, pairs: str) -> LinkedSegment:
    """Links words that are named: `pairs` such as "house=Haus big=groß"."""
    source_words, target_words = find_words(source), find_words(target)
    sources = [source[begin:end] for begin, end in source_words]
    targets = [target[begin:end] for begin, end in target_words]
    named = [pair.rsplit("=", 1) for pair in pairs.split()]
    links = [Link(sources.index(left), targets.index(right), 0.5) for left, right in named]
    return LinkedSegment(target, source_words, target_words, links)


def carry(source: str, options: MarkupOptions, *targets: tuple[str, str]) -> MarkedTarget:
    document = parse_markup(source, options)
    pairs = zip(document.segments, targets, strict=True)
    return document.place([link(segment.text, target, named) for segment, (target, named) in pairs])


HTML = MarkupOptions("html")
XML = MarkupOptions("xml")
XLIFF = MarkupOptions("xliff")


@pytest.mark.parametrize(
    ("source", "options", "target", "pairs", "expected"),
    [
        # Elements move with their words, and attributes stay as they stand.
        (
            "the <b class='a'  ID=x>red</b> house",
            HTML,
            "maison rouge",
            "red=rouge house=maison",
            "maison <b class='a'  ID=x>rouge</b>",
        ),
        # An element inside another stays inside.
        (
            "is <a>very <i>big</i></a> now",
            HTML,
            "nun ist sehr groß",
            "is=ist very=sehr big=groß now=nun",
            "nun ist <a>sehr <i>groß</i></a>",
        ),
        # Inside a word only where the target word has the same part.
        (
            "<b>Micro</b>soft wins",
            HTML,
            "es siegt Microsoft",
            "Microsoft=Microsoft wins=siegt",
            "es siegt <b>Micro</b>soft",
        ),
        ("un<b>happ</b>y men", HTML, "traurige Leute", "unhappy=traurige men=Leute", "<b>traurige</b> Leute"),
        # Punctuation stays outside, unless it was inside.
        ("say <b>yes</b>!", HTML, "sag ja!", "say=sag yes=ja yes=! !=!", "sag <b>ja</b>!"),
        ("say <b>yes!</b> now", HTML, "sag ja! nun", "say=sag yes=ja now=nun", "sag <b>ja!</b> nun"),
        # Empty elements stay beside their neighbour, white space where it was.
        ("a big<img src=x> house", HTML, "Haus, groß ist es", "big=groß house=Haus", "Haus, groß<img src=x> ist es"),
        ("the <img src=x>house big", HTML, "groß das Haus", "the=das house=Haus big=groß", "groß das <img src=x>Haus"),
        (
            '(1)<x id="1"/>The <g id="2">house<x id="3"/> </g>is',
            XLIFF,
            "(1)Das Haus ist",
            "(=( )=) The=Das house=Haus is=ist",
            '(1)<x id="1"/>Das <g id="2">Haus<x id="3"/> </g>ist',
        ),
        # White space at the ends is that of a given target.
        ('one <ex id="1"/>', MarkupOptions("xliff", has_target=True), "eins ", "one=eins", 'eins <ex id="1"/>'),
        ('one <ex id="1"/> ', MarkupOptions("xliff", has_target=True), "eins", "one=eins", 'eins<ex id="1"/>'),
        ("<p> one </p>", MarkupOptions("html", has_target=True), "eins", "one=eins", "<p> eins </p>"),
        # Pairs of XLIFF.
        (
            'is <bpt id="4">&lt;b></bpt>big<ept id="4">&lt;/b></ept> now',
            XLIFF,
            "nun groß ist",
            "is=ist big=groß now=nun",
            'nun <bpt id="4">&lt;b></bpt>groß<ept id="4">&lt;/b></ept> ist',
        ),
        # References are neither lost nor doubled.
        ("A&amp;B <b>c</b>&nbsp;&copy;", HTML, "A&B c\xa0© <", "c=c", "A&amp;B <b>c</b>&nbsp;&copy; &lt;"),
        # No links at all: all tags are kept.
        ("a <b>b</b> c", HTML, "x y z", "", "x <b></b>y z"),
        # Malformed HTML is kept.
        ("a <b>b <i>c</b> d</i>", HTML, "a b c d", "a=a b=b c=c d=d", "a <b>b <i>c</b> d</i>"),
        ("a </q>b <", HTML, "A B <", "a=A b=B", "A </q>B &lt;"),
    ],
)
def test_tags_follow_the_links(source: str, options: MarkupOptions, target: str, pairs: str, expected: str) -> None:
    assert carry(source, options, (target, pairs)).text == expected


def test_blocks_end_segments_and_what_is_between_is_kept() -> None:
    source = "<!doctype html>\n<ul>\n <li>One <b>two</b>\n <li>three<br>four</ul><script>a<b</script><pre>x\n  y</pre>"
    document = parse_markup(source, HTML)
    assert [segment.text for segment in document.segments] == ["One two", "three", "four", "x", "y"]
    assert document.source_text == "One two\nthree\nfour\nx\ny"
    assert all(document.source_text[item.begin : item.end] == item.text for item in document.segments)
    marked = document.place([link(item.text, item.text.upper(), "") for item in document.segments])
    assert marked.target_text == "ONE TWO\nTHREE\nFOUR\nX\nY"
    assert marked.text.startswith("<!doctype html>\n<ul>\n <li>ONE ")
    assert marked.text.endswith("\n <li>THREE<br>FOUR</ul><script>a<b</script><pre>X\n  Y</pre>")


def test_a_given_target_is_divided_where_the_fewest_links_cross() -> None:
    options = MarkupOptions("html", has_target=True)
    source = "<h1>A title</h1><p>The <b>house</b>.</p><p>Big</p>"
    marked = carry(source, options, ("Ein Titel. Das Haus. Groß", "title=Titel house=Haus Big=Groß The=Das"))
    assert marked.text == "<h1>Ein Titel.</h1><p>Das <b>Haus</b>.</p><p>Groß</p>"
    assert marked.target_text == "Ein Titel. Das Haus. Groß"
    lines = carry(source, options, ("Ein\nDas Haus\nGroß", ""))
    assert lines.text.startswith("<h1>Ein</h1><p>")
    assert lines.text.endswith("</p><p>Groß</p>")


def test_a_repeated_element_covers_each_part_and_an_element_with_an_id_is_not_repeated() -> None:
    target = ("er gibt das Rauchen auf", "he=er gives=gibt up=auf smoking=Rauchen")
    options = MarkupOptions("html", can_split=True)
    assert carry("he <b>gives up</b> smoking", options, target).text == "er <b>gibt</b> das Rauchen <b>auf</b>"
    assert carry("he <b id=x>gives up</b> smoking", options, target).text == "er <b id=x>gibt</b> das Rauchen auf"
    assert carry("he <b>gives up</b> smoking", HTML, target).text == "er <b>gibt</b> das Rauchen auf"


def test_the_model_reads_stand_ins_and_the_target_has_the_placeholders() -> None:
    options = MarkupOptions("html", has_placeholders=True)
    source = "Hello {name}, use <code>a &lt;b</code> <em>now</em>, %d!"
    document = parse_markup(source, options)
    assert document.segments[0].text == "Hello Tom, use Maria now, Boston!"
    pair = link(document.segments[0].text, "Hallo Toms, Boston nutze jetzt Maria!", "now=jetzt Hello=Hallo")
    marked = document.place([pair])
    assert marked.text == "Hallo {name}s, %d nutze <em>jetzt</em> <code>a &lt;b</code>!"
    assert marked.target_text == "Hallo {name}s, %d nutze jetzt a <b!"
    assert [report.placement for report in marked.reports] == ["copied", "copied", "links", "copied"]
    for report in marked.reports:
        assert document.source_text[slice(*report.source)] in ("{name}", "a <b", "now", "%d")
    assert [marked.target_text[slice(*word)] for word in marked.target_words][-2:] == ["a <b", "!"]


def test_a_placeholder_that_the_model_lost_stands_beside_its_neighbour() -> None:
    marked = carry("Open %s now", MarkupOptions("placeholders"), ("Nun öffnen", "Open=öffnen now=Nun"))
    assert sorted(marked.text.replace("%s", " %s ").split()) == ["%s", "Nun", "öffnen"]
    assert marked.reports[0].placement == "neighbours"


@pytest.mark.parametrize(
    ("target", "expected"),
    [("Hi { Name } %S", "Hi {name} %s %S"), ("{name} {name}", "{name} %s {name}"), ("%s {name}", "%s {name}")],
)
def test_placeholders_of_a_given_target_are_restored(target: str, expected: str) -> None:
    options = MarkupOptions("placeholders", has_target=True)
    marked = carry("{name} %s", options, (target, ""))
    assert marked.text == marked.target_text == expected


def test_own_pattern_and_icu_branches_are_placeholders() -> None:
    options = MarkupOptions("placeholders", placeholder_pattern=r"@\w+", has_target=True)
    source = "@you have {n, plural, one {# file} other {# files}} in %1$s and __dir__ or {{ x }}"
    marked = carry(source, options, (source, ""))
    expected = ["@you", "{n, plural, one {# file} other {# files}}", "%1$s", "__dir__", "{{ x }}"]
    assert [report.markup for report in marked.reports] == expected
    assert marked.text == source


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("a\nbé<c>", XML, "line 2, column"),
        ("a &nbsp; b", XML, "undefined entity at line 1, column 3"),
        ("x</fragment><fragment>y", XML, "line 1"),
        ("a <b>c", MarkupOptions("html", is_strict=True), "line 1, column 3"),
        ("a\n</b>", MarkupOptions("html", is_strict=True), "line 2, column 1"),
        ("a <b", MarkupOptions("html", is_strict=True), "line 1, column 3"),
    ],
)
def test_strict_formats_refuse_malformed_markup(source: str, options: MarkupOptions, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse_markup(source, options)
    assert caught.value.field == "source.text"


def test_a_pattern_that_re2_refuses_is_an_error() -> None:
    with pytest.raises(RequestError) as caught:
        parse_markup("a", MarkupOptions("placeholders", placeholder_pattern=r"(a)\1"))
    assert caught.value.field == "markup.placeholder_pattern"


def test_spans_may_overlap() -> None:
    spans = [MarkupSpan("x", 0, 7), MarkupSpan("y", 4, 13), MarkupSpan("z", 4, 4)]
    marked = carry(
        "red big house", MarkupOptions("spans", spans), ("maison grande rouge", "red=rouge big=grande house=maison")
    )
    assert [(span.id, marked.target_text[span.begin : span.end]) for span in marked.spans] == [
        ("x", "grande rouge"),
        ("y", "maison grande"),
        ("z", ""),
    ]


def test_sentences_are_segments_and_elements_may_cross_them() -> None:
    options = MarkupOptions("html", splits_sentences=True)
    document = parse_markup("<p>It is <b>one. This</b> is two.</p>", options)
    assert [segment.text for segment in document.segments] == ["It is one.", "This is two."]
    pairs = [
        link("It is one.", "Es ist eins.", "It=Es is=ist one=eins"),
        link("This is two.", "Dies ist zwei.", "This=Dies"),
    ]
    assert document.place(pairs).text == "<p>Es ist <b>eins. Dies</b> ist zwei.</p>"


def test_xml_keeps_declarations_entities_and_unknown_blocks() -> None:
    head = '<?xml version="1.0"?>\n<!DOCTYPE d [<!ENTITY co "x">]>\n<d><t>A '
    source = head + '&co; b</t>\n<t>c <u x="&#10;"/>d<![CDATA[<&]]></t></d>'
    document = parse_markup(source, XML)
    marked = document.place([link(item.text, item.text, "") for item in document.segments])
    assert marked.text.startswith(head)
    assert marked.text.count("&co;") == 1
    assert marked.text.count('<u x="&#10;"/>') == 1
    assert marked.target_text == "A &co; b\nc d<&"


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("see &brand; or <b>&v1;</b> &brand;", HTML),
        ("see &brand; or <b>&v1;</b> &brand;", MarkupOptions("xml", is_strict=False)),
        ('<!DOCTYPE d SYSTEM "d.dtd"><d>see &brand; or <b>&v1;</b> &brand;</d>', XML),
    ],
)
@pytest.mark.parametrize("has_target", [False, True])
def test_references_to_unknown_entities_are_kept(source: str, options: MarkupOptions, has_target: bool) -> None:
    document = parse_markup(source, replace(options, has_target=has_target))
    (segment,) = document.segments
    target = "siehe &brand; oder" if has_target else "siehe Tom oder"  # the model loses two of three
    marked = document.place([link(segment.text, target, "see=siehe or=oder")])
    assert marked.text == source.replace("see", "siehe").replace("or", "oder")


@pytest.mark.parametrize("has_target", [False, True])
def test_elements_that_cross_lines_do_not_overlap(has_target: bool) -> None:
    source = "<b>one<br>two <u>three</u></b> four <i>five<br>six</i>"
    options = MarkupOptions("html", has_target=has_target)
    if has_target:
        targets = [("eins\nfünf vier drei zwei\nsechs", "one=eins two=zwei three=drei four=vier five=fünf six=sechs")]
    else:
        middle = "fünf vier drei zwei", "two=zwei three=drei four=vier five=fünf"
        targets = [("eins", "one=eins"), middle, ("sechs", "six=sechs")]
    text = carry(source, options, *targets).text
    middle = text.split("<br>")[1]
    assert middle.index("</b>") < middle.index("<i>")
    assert middle.index("<u>") < middle.index("</u>") < middle.index("</b>")
    assert re.sub("<[^>]*>", " ", text).split() == ["eins", "fünf", "vier", "drei", "zwei", "sechs"]


def test_an_element_whose_end_crosses_a_line_covers_its_own_words() -> None:
    source = "<b>one<br>two</b> four <i>five<br>six</i>"
    middle = "zwei vier fünf", "two=zwei four=vier five=fünf"
    marked = carry(source, HTML, ("eins", "one=eins"), middle, ("sechs", "six=sechs"))
    assert marked.text == "<b>eins<br>zwei</b> vier <i>fünf<br>sechs</i>"


def test_a_guess_places_an_element_whose_words_have_no_links() -> None:
    pair = link("the big house", "das große Haus dort", "the=das")
    guessed = replace(pair, guesses=[Link(1, 1, 0.05), Link(2, 1, 0.03)])
    document = parse_markup("the <b>big</b> house", HTML)
    marked = document.place([guessed])
    assert marked.text == "das <b>große</b> Haus dort"
    assert marked.links == pair.links, "a guess is no link"
    assert marked.reports[0].placement == "links"
    assert marked.reports[0].score == 0.05


def test_links_count_more_than_guesses() -> None:
    pair = link("the big house", "das Haus dort", "the=das big=Haus")
    guessed = replace(pair, guesses=[Link(2, 1, 0.05)])
    document = parse_markup("the <b>big</b> <i>house</i>", HTML)
    assert "<b>Haus</b>" in document.place([guessed]).text


@pytest.mark.parametrize(
    "source",
    ["x <img/><b>y</b> z", "x <b>y</b><img/> z", "x <i></i><img/><b>y</b><wbr/><!--c--> z", "x <b><img/>y<wbr/></b> z"],
)
def test_elements_without_words_keep_their_order(source: str) -> None:
    assert carry(source, HTML, ("x y z", "x=x y=y z=z")).text == source


@pytest.mark.parametrize(("markup", "tag"), [("html", "<br/>"), ("xml", "<x/>"), ("xliff", "<x/>")])
def test_an_element_without_an_end_counts_once(markup, tag):
    assert parse_markup("a " + tag * 11_000 + " b", MarkupOptions(markup))
    with pytest.raises(RequestError, match="more than 20,000 tags"):
        parse_markup("a " + tag * 20_001 + " b", MarkupOptions(markup))


def test_a_word_that_begins_in_what_is_dropped_stays_within_the_text():
    moves = [_Move(2, 5, 0, 3, is_copy=True)]  # the first two of five characters are dropped
    words = [(0, 1), (0, 3), (1, 5), (4, 5)]
    assert [_move(word, moves, 3) for word in words] == [(0, 0), (0, 1), (0, 3), (2, 3)]
