"""`align` and `align_many` of both clients, against a real server."""

from __future__ import annotations

import asyncio

import pytest
from sidelight.client import (
    AsyncClient,
    Client,
    Decoding,
    InvalidArgumentError,
    LinkOptions,
    Markup,
    MarkupSpan,
)
from sidelight.client.alignments import MarkupReport

SOURCE, TARGET = "I don't want to be your friend.", "Ich will nicht dein Freund sein."
PAIRS = [(SOURCE, TARGET), ("A dog.", None), ("<b>A</b> dog.", None, {"markup": Markup("html")}), ("a b", "b a")]


def test_a_pair_is_linked(bundled_server):
    with Client(bundled_server) as client:
        alignment = client.align(SOURCE, TARGET)
        assert alignment.pharaoh == "0-0 2-1 1-2 5-3 6-4 4-5 7-6"
        assert [link[:2] for link in alignment.links] == [
            tuple(map(int, link.split("-"))) for link in alignment.pharaoh.split()
        ]
        assert alignment.target[3].text == "dein"
        assert (alignment.head_source, alignment.model) == ("calibration", "tatoeba-en-de")
        assert alignment.usage is not None
        assert alignment.usage.target_tokens == 8
        assert alignment.marked_target_text == TARGET


def test_options_reach_the_server(bundled_server):
    with Client(bundled_server) as client:
        weak = client.align(SOURCE, TARGET, heads=[(2, 1)], link_options=LinkOptions("argmax", ["attention"]))
        assert weak.head_source == "request"
        assert client.align(SOURCE, TARGET, layers=[2], row="reading", unit="token").target[0].text == "Ich"
        assert client.align(SOURCE, decoding=Decoding(max_new_tokens=3)).target_text == "Ich will"
        assert len(client.align("Don't stop!", "Halt nicht an!", pretokenized=True).source) == 2
        assert client.align("😀 a", "😀 a", links="1-1", offset_unit="utf8").target[1].begin == 5
        scores = [link.score for link in client.align(SOURCE, TARGET).links]
        assert len(client.align(SOURCE, TARGET, min_score=max(scores)).links) == 1
        spans = client.align("a b", "x y", links="0-1", markup=Markup(spans=[MarkupSpan("s", 0, 1)])).spans
        assert spans == (MarkupSpan("s", 2, 3),)
        marked = client.align("a <b>b</b>", "x y", links="1-0", markup=Markup("xml", strict=True))
        assert marked.marked_target_text == "<b>x</b> y"
        assert marked.report == (MarkupReport("<b>", (2, 3), (0, 1), "links", 1.0),)
        attributed = client.attribute(SOURCE, target=TARGET, signals=True).result()
        assert client.align(SOURCE, TARGET, signals=True).signals == attributed.signals
        assert client.align(SOURCE, TARGET).signals is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"markup": "html"}, "markup"),
        ({"markup": Markup("htm")}, "markup.format"),
        ({"link_options": LinkOptions(features=["magic"])}, "link_options.features"),
        ({"links": 5}, "links"),
        ({"heads": [(0, 1)], "layers": [0]}, "heads"),
        ({"colour": 1}, "colour"),
        ({"timeout": 0}, "timeout"),
        ({"markup": Markup(spans=[MarkupSpan("x", -1, 0)])}, "markup.spans[0]"),
    ],
)
def test_the_client_refuses_a_wrong_option(options, field):
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidArgumentError) as raised:
        client.align("a", "b", **options)
    assert raised.value.field == field


def test_many_pairs_have_the_links_of_single_calls(bundled_server):
    with Client(bundled_server) as client:
        alone = [client.align(*pair[:2], **(pair[2] if len(pair) == 3 else {})) for pair in PAIRS]
        results = list(client.align_many(PAIRS * 20))
        assert [result.index for result in results] == list(range(80))
        assert [result.get().marked_target_text for result in results] == [
            alignment.marked_target_text for alignment in alone
        ] * 20
        assert [result.get().links for result in results] == [alignment.links for alignment in alone] * 20


def test_a_pair_that_fails_fails_alone(bundled_server):
    with Client(bundled_server) as client:
        pairs = [("a", "b", {"links": "0-0"}), ("a", "b", {"links": "0-9"}), ("a", 5), ("a", "b", {"links": "0-0"})]
        results = list(client.align_many(pairs))
    assert [getattr(result.error, "field", "") for result in results] == ["", "links", "pair", ""]
    with pytest.raises(InvalidArgumentError):
        results[1].get()


def test_asyncio_does_the_same(bundled_server):
    async def run():
        async with AsyncClient(bundled_server) as client:
            single = await client.align(SOURCE, TARGET)
            many = [result.get().pharaoh async for result in client.align_many([(SOURCE, TARGET)] * 5)]
            return single.pharaoh, many

    with Client(bundled_server) as client:
        expected = client.align(SOURCE, TARGET).pharaoh
    assert asyncio.run(run()) == (expected, [expected] * 5)
