"""Links and signals of Attribute, on a real server: beside any capture, of decoded and of given targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sidelight.client import (
    AsyncClient,
    Attribution,
    Beam,
    Capture,
    Client,
    Contrast,
    Decoding,
    InvalidArgumentError,
    LinkOptions,
    Sampling,
)
from sidelight.server.alignment import AlignmentPreset, Linker, WordedText, compute_signals
from sidelight.server.text import Token

SOURCE = "Where did you buy that old book, Tom?"
TARGETS = ({}, {"target": "Wo hast du das Buch gekauft, Tom?"}, {"decoding": Decoding(max_new_tokens=4)})
NOTHING = Capture(none=True)


def server_tokens(tokens) -> list[Token]:
    return [Token(**dataclasses.asdict(token)) for token in tokens]


def wanted_links(client: Client, preset: AlignmentPreset, method, **options) -> list[tuple[int, int]]:
    """The links that the linker makes of the rows that the client captures."""
    capture = Capture(
        heads=[(layer, head, weight) for layer, head, weight in preset.heads],
        over_heads="mean",
        row=preset.row,
        special_tokens=preset.special_tokens,
    )
    plain = client.attribute(SOURCE, capture=capture, **options).result()
    source = WordedText.of_text(SOURCE, server_tokens(plain.source))
    target = WordedText.of_text(plain.text, server_tokens(plain.steps))
    return [link[:2] for link in Linker(preset, method).link(plain.cross.T, source, target)]


@pytest.mark.parametrize("options", TARGETS)
def test_signals_are_those_of_the_last_layer_whatever_is_captured(bundled_server, options):
    rows = Capture(layers=[2], over_heads="mean", over_layers="mean")
    with Client(bundled_server) as client:
        plain = client.attribute(SOURCE, capture=rows, **options).result()
        expected = compute_signals(plain.cross.T, server_tokens(plain.source), server_tokens(plain.steps))
        assert plain.signals is None
        for capture in (NOTHING, None, Capture(row="reading", layers=[0], special_tokens="renormalize")):
            result = client.attribute(SOURCE, capture=capture, signals=True, **options).result()
            assert result.text == plain.text
            found, wanted = dataclasses.asdict(result.signals), dataclasses.asdict(expected)
            assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("options", TARGETS)
@pytest.mark.parametrize("method", ["argmax", "threshold"])
def test_links_come_with_the_steps_and_stay(bundled, bundled_server, options, method):
    with Client(bundled_server) as client:
        stream = client.attribute(SOURCE, capture=NOTHING, link_options=LinkOptions(method), **options)
        steps = list(stream)
        result = stream.result()
        assert len({step.index for step in steps if step.links}) > 2
        assert tuple(link for step in steps for link in step.links) == result.alignment.links
        assert [link[:2] for link in result.alignment.links] == wanted_links(
            client, bundled.alignment, method, **options
        )
        assert result.alignment.pharaoh == " ".join(f"{link.source}-{link.target}" for link in result.alignment.links)
        assert "".join(word.text for word in result.alignment.source) == SOURCE.replace(" ", "")
        assert "".join(word.text for word in result.alignment.target) == result.text.replace(" ", "")


@pytest.mark.parametrize("options", TARGETS)
def test_all_words_together_are_decided_at_the_end(bundled, bundled_server, options):
    with Client(bundled_server) as client:
        result = client.attribute(SOURCE, link_options=LinkOptions("itermax"), **options).result()
        assert [link[:2] for link in result.alignment.links] == wanted_links(
            client, bundled.alignment, "itermax", **options
        )
        assert result.alignment.head_source == "calibration"
        assert result.cross is not None


def test_many_texts_have_links_and_signals_of_their_own(bundled_server):
    texts = [SOURCE, ("It is late.", {"target": "Es ist spät."}), "I like it.", (SOURCE, {"target": "Wo ist Tom?"})]
    options = {"signals": True, "link_options": LinkOptions("argmax"), "capture": NOTHING}
    with Client(bundled_server) as client:
        together = [result.attribution for result in client.attribute_many(texts, **options)]
        for text, result in zip(texts, together, strict=True):
            source, more = (text, {}) if isinstance(text, str) else text
            alone: Attribution = client.attribute(source, **options, **more).result()
            assert alone.alignment.pharaoh == result.alignment.pharaoh
            assert dataclasses.asdict(alone.signals) == pytest.approx(dataclasses.asdict(result.signals), abs=1e-5)


async def test_asyncio_has_them_and_offsets_are_the_clients(bundled_server):
    async with AsyncClient(bundled_server) as client:
        options = {"signals": True, "link_options": LinkOptions(), "offset_unit": "utf8"}
        result = await client.attribute("Is Käthe old?", target="Ist Käthe alt?", **options).result()
        assert [(word.begin, word.end) for word in result.alignment.target] == [(0, 3), (4, 10), (11, 14), (14, 15)]
        assert 0 < result.signals.coverage <= 1


def test_a_resumed_stream_has_all_links_at_its_end(bundled_server):
    options = {"link_options": LinkOptions("argmax"), "signals": True}
    with Client(bundled_server) as client:
        whole = client.attribute(SOURCE, **options).result()
        rest = client.attribute(SOURCE, resume_at=3, **options).result()
        assert (rest.alignment, rest.signals) == (whole.alignment, whole.signals)


def test_a_contrast_has_no_part_in_them(bundled_server):
    options = {"link_options": LinkOptions("argmax"), "signals": True}
    with Client(bundled_server) as client:
        plain = client.attribute(SOURCE, **options).result()
        contrast = Contrast(source="Who are you?")
        compared = client.attribute(SOURCE, contrast=contrast, scores=["pcxmi"], **options).result()
        assert compared.alignment.pharaoh == plain.alignment.pharaoh
        assert compared.signals.coverage == pytest.approx(plain.signals.coverage, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"signals": True, "decoding": Decoding(Beam(2))}, "signals"),
        ({"link_options": LinkOptions(), "decoding": Decoding(Beam(2))}, "link_options"),
        ({"link_options": LinkOptions(features=["spelling", "spelling"])}, "link_options.features[1]"),
        ({"link_options": LinkOptions("best")}, "link_options.method"),
        ({"signals": 1}, "signals"),
    ],
)
def test_what_is_refused_has_its_field(bundled_server, options, field):
    with Client(bundled_server) as client, pytest.raises(InvalidArgumentError) as caught:
        client.attribute("Hello.", **options).result()
    assert caught.value.field == field


def test_links_and_signals_change_no_token(bundled_server):
    decoding = Decoding(Sampling(seed=5))
    with Client(bundled_server) as client:
        plain = client.attribute(SOURCE, decoding=decoding, scores=["probability"]).result()
        options = {"link_options": LinkOptions(), "signals": True}
        observed = client.attribute(SOURCE, decoding=decoding, scores=["probability"], **options).result()
        assert observed.steps == plain.steps
        assert np.array_equal(observed.cross, plain.cross)
        assert np.array_equal(observed.scores["probability"], plain.scores["probability"])
