"""The encoder's states of requests are those of transformers' own encoder: read together, alone, and by an engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES
from sidelight.server.api.validation import validate_encoded_pair, validate_request
from sidelight.server.engine import Engine, EngineConfig, OutputQueue
from sidelight.server.engine.outputs import target_outputs
from sidelight.server.errors import RequestError
from sidelight.server.models import LoadedModel
from sidelight.server.request import EncoderStates, Finished, Output, Request, Started
from sidelight.server.runner import TargetPass
from sidelight.server.runner.targets import TargetReader
from sidelight.server.text import Languages, turn_languages
from sidelight.v1 import attribution_service_pb2 as pb

TEXT = "Der schnelle braune Fuchs springt über den faulen Hund, und der Hund will nicht."
MODELS = [name for name, family in FAMILIES.items() if family.is_encoder_decoder]


def pair_request(loaded: LoadedModel, number: int, source_language: str = "", target_language: str = "") -> Request:
    """A request for the states of two texts. The requests differ in the lengths of the texts."""
    message = pb.AttributeRequest(source_language=source_language, target_language=target_language)
    message.source.text = TEXT[: 3 + 17 * number % len(TEXT)].strip()
    message.given.text = TEXT[7 : 9 + 29 * number % len(TEXT)].strip()
    return validate_encoded_pair(message, loaded, f"r{number}")


@torch.inference_mode()
def own_states(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """What transformers' encoder gives for tokens: float32 `[tokens, width]`."""
    tokens = torch.tensor([ids])
    model = loaded.model.get_encoder()
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].float().numpy()


def assert_own(loaded: LoadedModel, request: Request, outputs: list[Output]) -> None:
    started, states, finished = outputs
    assert isinstance(started, Started)
    assert isinstance(states, EncoderStates)
    assert isinstance(finished, Finished)
    for found, text in ((states.source, request.source), (states.target, request.target.text)):
        assert found.dtype == np.float32
        assert found.shape == (len(text.tokens), loaded.encoder_width)
        np.testing.assert_allclose(found, own_states(loaded, text.ids), atol=1e-5)


@torch.inference_mode()
def outputs_of(loaded: LoadedModel, target_pass: TargetPass) -> list[Output]:
    return [output for output in target_outputs(loaded, target_pass.request, target_pass) if output is not None]


@pytest.mark.parametrize("name", slow_except(MODELS, ("t5",)))
def test_each_gets_the_states_of_transformers(zoo, name):
    loaded, family = zoo(name), FAMILIES[name]
    languages = family.source_language, family.target_language
    requests = [pair_request(loaded, number, *languages) for number in range(8)]
    passes = [TargetPass(loaded, request) for request in requests]
    if loaded.backend is not None:
        with torch.inference_mode():
            assert {*TargetReader(loaded, loaded.backend, loaded.backend.new_kv_cache(1)).read(passes, 10_000)} == {
                *passes
            }
    for request, target_pass in zip(requests, passes, strict=True):
        assert (target_pass.result is None) == (loaded.backend is None)
        assert_own(loaded, request, outputs_of(loaded, target_pass))
        assert_own(loaded, request, outputs_of(loaded, TargetPass(loaded, request)))  # alone


def test_an_engine_reads_states_beside_targets(bundled):
    """Several pairs together, one that is too long to be read with others, and targets given and decoded."""
    pairs = [pair_request(bundled, number) for number in range(1, 9)]
    # Longer than a program reads.
    pairs.append(replace(pairs[0], source=bundled.tokenizer.encode_source("Das ist ein Hund. " * 30)))
    given, decoded = (pb.AttributeRequest(), pb.AttributeRequest())
    given.source.text, given.given.text = "I like dogs.", "Ich mag Hunde."
    decoded.source.text = "I like dogs."
    others = [validate_request(message, bundled, "other") for message in (given, decoded)]
    engine = Engine(bundled, EngineConfig(max_running=8))
    engine.start()

    async def run(request: Request) -> list[Output]:
        queue = OutputQueue(engine.wake)
        engine.submit(request, queue)
        outputs: list[Output] = []
        while some := await queue.get(2**30):
            outputs += some
        return outputs

    async def run_all() -> list[list[Output]]:
        return list(await asyncio.gather(*map(run, [*pairs, *others])))

    try:
        outputs = asyncio.run(run_all())
    finally:
        engine.stop()
    for request, found in zip(pairs, outputs, strict=False):
        assert_own(bundled, request, found)
    assert [found[-1].text for found in outputs[len(pairs) :]] == ["Ich mag Hunde."] * 2


def test_states_that_are_no_numbers_end_their_request_alone(bundled, monkeypatch):
    passes = [TargetPass(bundled, pair_request(bundled, number)) for number in (1, 2, 3)]
    damaged, encode = passes[1].request.source.ids, type(bundled.backend).encode

    def encode_with_damage(self, sources, lengths):
        states = encode(self, sources, lengths).clone()
        for row, length in enumerate(lengths):
            if sources[row, :length].tolist() == damaged:
                states[row, 0, 0] = torch.nan
        return states

    monkeypatch.setattr(type(bundled.backend), "encode", encode_with_damage)
    with torch.inference_mode():
        TargetReader(bundled, bundled.backend, bundled.backend.new_kv_cache(1)).read(passes, 10_000)
    assert_own(bundled, passes[0].request, outputs_of(bundled, passes[0]))
    with pytest.raises(RequestError):
        outputs_of(bundled, passes[1])
    assert_own(bundled, passes[2].request, outputs_of(bundled, passes[2]))


@pytest.mark.parametrize(
    ("name", "read_with"),
    [("m2m100", ("de", "en")), pytest.param("mbart", ("de_DE", "en_XX"), marks=pytest.mark.slow)],
)
def test_a_target_is_read_in_its_own_language(zoo, name, read_with):
    loaded = zoo(name)
    target = pair_request(loaded, 1, *reversed(read_with)).target.text
    assert target == loaded.tokenizer.encode_source(target.text, Languages(*read_with))
    assert target.ids != loaded.tokenizer.encode_source(target.text, Languages(*reversed(read_with))).ids


def test_a_code_in_the_source_stays():
    """A multilingual model such as opus-mt-en-ROMANCE has no code for English."""
    languages = Languages("", "fr")
    assert turn_languages(SimpleNamespace(puts_target_in_source=True), languages) == languages
    assert turn_languages(SimpleNamespace(puts_target_in_source=False), languages) == Languages("fr", "")
