"""The steps of follow streams are those of a given target: at every prefix, whatever the client did before."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from combinations import slow_except
from follow_driver import FollowDriver, assert_as_given
from harness import CROSS, DECODER_SELF, serving, stub
from model_zoo import FAMILIES, SOURCE, TARGET
from sidelight.v1 import attention_pb2 as attention

_SCORES = [attention.SCORE_PROBABILITY, attention.SCORE_ENTROPY]
_FAST = ("bart", "llama", "fsmt", "gpt2 without slots")
_NAMES = [*FAMILIES, "gpt2 without slots", "marian without slots"]


@pytest.fixture(scope="module", params=slow_except(_NAMES, _FAST))
def followed(request, zoo):
    """A model, and a stub of a server on the model."""
    name, _, is_without = request.param.partition(" ")
    loaded = zoo(name)
    if is_without:
        loaded = replace(loaded, backend=None)
    with serving(loaded) as address, stub(address) as service:
        yield FAMILIES[name], loaded, service


def languages(family) -> dict[str, str]:
    return {"source_language": family.source_language, "target_language": family.target_language}


def options(family, loaded, row: str) -> dict:
    kinds = [CROSS, DECODER_SELF] if loaded.is_encoder_decoder else [DECODER_SELF]
    capture = attention.Capture(kinds=kinds, row=attention.Row.Value(f"ROW_{row}"))
    return {"capture": capture, "scores": _SCORES, **languages(family)}


@pytest.mark.parametrize("row", ["PREDICTING", "READING"])
def test_a_source_that_grows_word_by_word(followed, row):
    family, loaded, service = followed
    fields = options(family, loaded, row)
    driver = FollowDriver(service, **fields)
    words, targets = SOURCE.split()[:6], TARGET.split()
    for index, (word, target) in enumerate(zip(words, targets, strict=False)):
        driver.add_source(f" {word}" if index else word)
        driver.add_text(f" {target}" if index else target)
    finished = driver.finish()
    assert len(driver.started) == 6
    assert finished.usage.target_tokens == len(driver.ids) > 6
    assert "".join(step.text for step in driver.steps) == finished.text
    assert_as_given(service, driver.stretches, **fields)


@pytest.mark.covering(1)
@pytest.mark.parametrize("row", ["PREDICTING", "READING"])
@pytest.mark.parametrize("seed", range(2))
def test_what_a_client_does_at_random(followed, row, seed):
    family, loaded, service = followed
    act_at_random(service, loaded, random.Random(f"{seed} {row}"), options(family, loaded, row))


@pytest.mark.covering(1)
@pytest.mark.parametrize("method", ["WEIGHTS", "VALUE_NORMS", "ROLLOUT"])
@pytest.mark.parametrize("row", ["PREDICTING", "READING"])
def test_methods_and_special_tokens_that_are_left_out(followed, method, row):
    family, loaded, service = followed
    if method.lower() not in loaded.attention_layers.methods:
        pytest.skip(f"the model does not have {method}")
    fields = options(family, loaded, row)
    fields["capture"].method = attention.Method.Value(f"METHOD_{method}")
    fields["capture"].special_tokens = attention.SPECIAL_TOKENS_RENORMALIZE
    act_at_random(service, loaded, random.Random(f"{method} {row}"), fields)


def act_at_random(service, loaded, draw: random.Random, fields: dict) -> None:
    """Follows a client that adds and takes back by chance, and compares all its steps."""
    usual = [id_ for id_ in range(loaded.vocabulary_size) if loaded.tokenizer.vocabulary.piece(id_)]
    is_special = loaded.tokenizer.vocabulary.is_special
    special = [id_ for id_ in usual if is_special(id_) and id_ != loaded.tokenizer.padding_id]
    usual = [id_ for id_ in usual if not is_special(id_)]
    words = SOURCE.split()
    driver = FollowDriver(service, **fields)
    driver.add_source(words[0])
    for _ in range(12):
        action = draw.choice(["source", "ids", "special", "text", "pieces", "take_back"])
        if action == "source":
            driver.add_source(" " + draw.choice(words))
        elif action == "ids":
            driver.add_ids(*draw.choices(usual, k=draw.randint(1, 3)))
        elif action == "special":
            driver.add_ids(draw.choice(usual), draw.choice(special), draw.choice(usual))
        elif action == "text":
            driver.add_text(" " + draw.choice(TARGET.split()))
        elif action == "pieces":
            pieces = draw.choice([(" Hu", "nd"), (" der ", "faule Hu", "nd"), ("x",), (" 漢", "字")])
            driver.add_text(*pieces)
        else:
            driver.take_back(draw.randint(0, len(driver.ids)))
    driver.add_ids(draw.choice(usual))
    assert driver.finish().usage.target_tokens == len(driver.ids)
    assert_as_given(service, driver.stretches, **fields)
