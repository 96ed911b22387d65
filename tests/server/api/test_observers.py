"""Links and signals by any row and any way to run a model, and what has no rows to make them of."""

from __future__ import annotations

import dataclasses
import itertools

import grpc
import numpy as np
import pytest
from harness import request, serving, stub
from model_zoo import SENTENCES
from sidelight.client import Capture, Client, Decoding, InvalidArgumentError, LinkOptions
from sidelight.server.alignment import AlignmentHead, AlignmentPreset, Linker, WordedText, compute_signals
from sidelight.server.text import Token

SOURCE = "Where did you buy that old book, Tom?"
NOTHING = Capture(none=True)
HEADS = (AlignmentHead(1, 2, 0.75), AlignmentHead(2, 0, 0.25))


def server_tokens(tokens) -> list[Token]:
    return [Token(**dataclasses.asdict(token)) for token in tokens]


def check(client: Client, source: str, preset: AlignmentPreset, **options) -> None:
    """Compares links and signals with those of rows that the client captures."""
    heads = Capture(
        heads=[(layer, head, weight) for layer, head, weight in preset.heads],
        over_heads="mean",
        row=preset.row,
        special_tokens=preset.special_tokens,
    )
    rows = client.attribute(source, capture=heads, **options).result()
    texts = source, rows.text
    tokens = server_tokens(rows.source), server_tokens(rows.steps)
    worded = [WordedText.of_text(text, own) for text, own in zip(texts, tokens, strict=True)]
    wanted = Linker(preset, "argmax").link(rows.cross.T, *worded)
    observed = {"link_options": LinkOptions("argmax"), "signals": True, "capture": NOTHING}
    stream = client.attribute(source, **observed, **options)
    live = [link for step in stream for link in step.links]
    result = stream.result()
    assert [link[:2] for link in live] == [link[:2] for link in wanted]
    assert [link.score for link in result.alignment.links] == pytest.approx([link.score for link in wanted], abs=1e-4)
    last = client.get_model().attentions["cross"].layers - 1
    whole = Capture(kinds=["cross"], layers=[last], over_heads="mean", over_layers="mean")
    cross = client.attribute(source, capture=whole, **options).result().cross
    signals = dataclasses.asdict(compute_signals(np.ascontiguousarray(cross.T), *tokens))
    assert dataclasses.asdict(result.signals) == pytest.approx(signals, abs=1e-5)


@pytest.mark.parametrize("special_tokens", ["keep", "renormalize"])
def test_the_row_that_reads_a_token_comes_a_pass_later(bundled, special_tokens):
    preset = AlignmentPreset(HEADS, "reading", special_tokens, "argmax", weights={"attention": 1.0})
    with serving(dataclasses.replace(bundled, alignment=preset)) as address, Client(address) as client:
        for options in ({}, {"decoding": Decoding(max_new_tokens=4)}, {"target": "Wo hast du das Buch gekauft?"}):
            check(client, SOURCE, preset, **options)
        result = client.attribute(SOURCE, link_options=LinkOptions()).result()
        assert result.alignment.head_source == "calibration"
        # Beside rows of the client that leave out special tokens, and beside a combiner.
        for capture in (Capture(special_tokens="renormalize"), Capture(kinds=["cross"], method="rollout")):
            beside = client.attribute(SOURCE, link_options=LinkOptions(), capture=capture).result()
            assert beside.alignment == result.alignment
            assert np.array_equal(beside.cross, client.attribute(SOURCE, capture=capture).result().cross)


def test_without_slots_and_with_whole_matrices(zoo):
    loaded = zoo("fsmt")
    preset = AlignmentPreset((AlignmentHead(0, 1), AlignmentHead(0, 0)), "reading", "renormalize", "argmax")
    loaded = dataclasses.replace(loaded, alignment=preset)
    with serving(loaded) as address, Client(address) as client:
        for options in ({"decoding": Decoding(max_new_tokens=8)}, {"target": SENTENCES[5]}):
            check(client, SENTENCES[2], preset, **options)


def test_a_long_target_is_observed_in_parts(bundled, monkeypatch):
    monkeypatch.setattr("sidelight.server.runner.targets.target_pass._PASS_TOKENS", 3)
    preset = AlignmentPreset(HEADS, "reading", "keep", "argmax", weights={"attention": 1.0})
    with serving(dataclasses.replace(bundled, alignment=preset)) as address, Client(address) as client:
        check(client, SOURCE, preset, target="Wo hast du das alte Buch gekauft, Tom?", prefix=None)


def test_a_decoder_only_model_has_none(zoo):
    with serving(zoo("llama")) as address, Client(address) as client:
        for options in ({"signals": True}, {"link_options": LinkOptions()}):
            with pytest.raises(InvalidArgumentError) as caught:
                client.attribute("Hello.", **options).result()
            assert caught.value.field == next(iter(options))


def test_a_model_without_a_lexicon_says_so(bundled):
    with serving(dataclasses.replace(bundled, alignment=None)) as address, Client(address) as client:
        with pytest.raises(InvalidArgumentError) as caught:
            client.attribute("Hello.", link_options=LinkOptions(features=["spelling", "lexicon"])).result()
        assert caught.value.field == "link_options.features[1]"
        alignment = client.attribute("Hello.", link_options=LinkOptions()).result().alignment
        assert alignment.head_source == "default"


def test_links_of_two_directions_need_align(bundled_server):
    with stub(bundled_server) as service:
        for field in ("reverse_model", "symmetrization"):
            message = request("Hello.")
            setattr(message.link_options, field, "other" if field == "reverse_model" else 2)
            with pytest.raises(grpc.RpcError) as caught:
                list(service.Attribute(message))
            assert f"link_options.{field}" in caught.value.details()


def test_words_are_complete_before_the_text_is(bundled_server):
    with Client(bundled_server) as client:
        steps = list(client.attribute(SOURCE, link_options=LinkOptions("argmax")))
        linked = [step.index for step in steps if step.links]
        assert linked[0] < len(steps) // 2
        targets = [link.target for step in steps for link in step.links]
        assert all(one <= other for one, other in itertools.pairwise(targets))
