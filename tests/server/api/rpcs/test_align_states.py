"""The feature encoder_states over a real socket: the scores of a calculation of one's own, ways to ask, refusals."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch
from harness import request, serving, stub
from sidelight.client import AsyncClient, Client, LinkOptions, Markup
from sidelight.server.alignment import LinkDecision
from sidelight.server.api.validation import encoded_pair
from sidelight.server.models import LoadedModel
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

SOURCE, TARGET = "I don't want to be your friend.", "Ich will nicht dein Freund sein."
STATES = LinkOptions("threshold", ["encoder_states"])
ALL = LinkOptions(features=["attention", "lexicon", "spelling", "encoder_states"])


@pytest.fixture(scope="module")
def calibrated_server(bundled) -> Iterator[str]:
    """The bundled model with a calibration that has chosen the feature, and the same model for the other direction.

    By the method "threshold" all pairs of words are links. Links without the states have a decision of their own.
    """
    weights, thresholds = ({**bundled.alignment.weights, "encoder_states": 0.5}, {"threshold": 0.0})
    preset = dataclasses.replace(
        bundled.alignment,
        weights=weights,
        thresholds={**bundled.alignment.thresholds, **thresholds},
        without_states=LinkDecision(bundled.alignment.weights, "argmax", {"argmax": 0.9}),
    )
    turned = dataclasses.replace(bundled, name="turned", alignment=preset)
    with serving(dataclasses.replace(bundled, alignment=preset), turned) as address:
        yield address


@torch.inference_mode()
def word_vectors(loaded: LoadedModel, source: str, words: list[tuple[int, int]]) -> np.ndarray:
    """The mean of transformers' encoder states over the tokens of each word, by the share of a token that it has."""
    encoded = loaded.tokenizer.encode_source(source)
    states = loaded.model.get_encoder()(input_ids=torch.tensor([encoded.ids])).last_hidden_state[0].double().numpy()
    vectors: list[np.ndarray] = []
    for begin, end in words:
        weights = [
            len(
                [
                    place
                    for place in range(token.begin, token.end)
                    if begin <= place < end and not source[place].isspace()
                ]
            )
            / max(1, len("".join(source[token.begin : token.end].split())))
            for token in encoded.tokens
        ]
        vectors.append(np.average(states, 0, weights))
    return np.array(vectors)


def reference_scores(loaded: LoadedModel, source: str, target: str, response) -> np.ndarray:
    """The scores of all pairs of words by the feature alone, float64 `[source words, target words]`."""
    one = word_vectors(loaded, source, [(span.begin, span.end) for span in response.source])
    other = word_vectors(loaded, target, [(span.begin, span.end) for span in response.target])
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (one, other))
    powers = np.exp(one @ other.T / 0.1)
    alike = np.sqrt((powers / powers.sum(0)) * (powers / powers.sum(1, keepdims=True)))
    scores = (alike + 0.01) ** 0.5
    return scores / (scores.sum(0) + 0.01**0.5)


@pytest.mark.parametrize("target", [TARGET, None, "Ein völlig anderer Satz: 17 Übersetzungsfehler!"])
def test_scores_are_those_of_transformers_states(bundled, calibrated_server, target):
    """Of all pairs of words: given, decoded, and a target with divided words."""
    with Client(calibrated_server) as client:
        found = client.align(SOURCE, target, link_options=STATES)
    expected = reference_scores(bundled, SOURCE, found.target_text, found)
    scores = np.zeros_like(expected)
    for link in found.links:
        scores[link.source, link.target] = link.score
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_every_way_to_ask_has_the_same_links(bundled, bundled_server):
    async def align_async() -> list[str]:
        async with AsyncClient(bundled_server) as client:
            one = await client.align(SOURCE, TARGET, link_options=ALL)
            many = [result async for result in client.align_many([(SOURCE, TARGET)] * 5, link_options=ALL)]
            return [one.pharaoh, *(result.alignment.pharaoh for result in many)]

    with Client(bundled_server) as client:
        whole = client.align(SOURCE, TARGET, link_options=ALL)
        many = list(client.align_many([(SOURCE, TARGET), (SOURCE, None)], link_options=ALL))
        marked = client.align(f"<p>{SOURCE}</p><p>I like <b>dogs</b>.</p>", markup=Markup("html"), link_options=ALL)
        plain = client.align(SOURCE, TARGET)
    assert {result.alignment.pharaoh for result in many} == {whole.pharaoh, *asyncio.run(align_async())}
    assert [link.score for link in whole.links] != [link.score for link in plain.links]
    assert marked.marked_target_text == f"<p>{TARGET}</p><p>Ich mag <b>Hunde</b>.</p>"
    # The encoder reads the source once more, and the target.
    read = len(bundled.tokenizer.encode_source(TARGET).tokens)
    assert (plain.usage.source_tokens, whole.usage.source_tokens) == (11, 11 + 11 + read)


def test_a_calibration_that_has_chosen_the_feature(calibrated_server, bundled_server):
    """Align uses the feature, in both directions; live links go without."""
    with Client(calibrated_server) as client, Client(bundled_server) as other:
        assert client.get_model().calibration.has_encoder_states
        assert not other.get_model().calibration.has_encoder_states
        found, asked = client.align(SOURCE, TARGET), other.align(SOURCE, TARGET, link_options=ALL)
        assert [link.score for link in found.links] == [link.score for link in asked.links]
        both = client.align(SOURCE, TARGET, link_options=LinkOptions(reverse_model="turned"))
        # The model of the other direction reads the target, and both texts once more.
        read = found.usage.source_tokens - 2 * 11
        assert both.usage.source_tokens == found.usage.source_tokens + 2 * read + 11
        live = client.attribute(SOURCE, target=TARGET, link_options=LinkOptions()).result()
        plain = other.attribute(SOURCE, target=TARGET, link_options=LinkOptions("argmax")).result()
        assert live.alignment.links == tuple(link for link in plain.alignment.links if link.score >= 0.9)


def refuse(address: str, message: pb.AlignRequest | pb.AttributeRequest) -> str:
    """Returns the field that the server blames."""

    def send() -> None:
        if isinstance(message, pb.AlignRequest):
            service.Align(message, timeout=60)
        else:
            list(service.Attribute(message, timeout=60))

    with stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        send()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    return raised.value.details().partition(": ")[0]


def test_what_cannot_have_states_is_refused_by_its_field(bundled, bundled_server, monkeypatch):
    features = pb.LinkOptions(features=[pb.LINK_FEATURE_ATTENTION, pb.LINK_FEATURE_ENCODER_STATES])
    live = request(SOURCE, link_options=features)
    assert refuse(bundled_server, live) == "link_options.features[1]"
    message = pb.AlignRequest(
        source=text.Text(text="a"), target=text.Text(text="b"), links="0-0", link_options=features
    )
    assert refuse(bundled_server, message) == "link_options"
    message = pb.AlignRequest(source=text.Text(text=SOURCE), target=text.Text(text=TARGET), link_options=features)
    # As many states as there is room for, and one more.
    room = (11 + len(bundled.tokenizer.encode_source(TARGET).tokens)) * bundled.encoder_width * 4
    monkeypatch.setattr(encoded_pair, "MAX_PART_BYTES", room)
    with stub(bundled_server) as service:
        assert service.Align(message, timeout=60).links
        monkeypatch.setattr(encoded_pair, "MAX_PART_BYTES", room - 1)
        assert refuse(bundled_server, message) == "link_options.features[1]"
        message.target.Clear()
        assert refuse(bundled_server, message) == "target"
        message.ClearField("target")  # the server writes the same target
        assert refuse(bundled_server, message) == "link_options.features[1]"
        message.ClearField("link_options")
        assert service.Align(message, timeout=60).links


def test_a_calibrated_feature_that_is_refused_has_the_field_of_all_features(calibrated_server, monkeypatch):
    monkeypatch.setattr(encoded_pair, "MAX_PART_BYTES", 100)
    message = pb.AlignRequest(source=text.Text(text=SOURCE), target=text.Text(text=TARGET))
    assert refuse(calibrated_server, message) == "link_options.features"


def test_a_decoder_only_model_is_refused(zoo):
    with serving(zoo("gpt2")) as address:
        features = pb.LinkOptions(features=[pb.LINK_FEATURE_ENCODER_STATES])
        message = pb.AlignRequest(source=text.Text(text="a"), target=text.Text(text="b"), link_options=features)
        assert refuse(address, message) == "model"
