"""The number of new tokens fits the model and the lengths of its configuration, the prompt counted."""

from __future__ import annotations

import grpc
import pytest
from harness import serving, steps_of, stub
from sidelight.client import Client, Decoding, InvalidArgumentError
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text


def test_the_configurations_length_counts_the_prompt(zoo, monkeypatch):
    loaded = zoo("gpt2")
    monkeypatch.setattr(loaded.model.generation_config, "max_length", 20)
    with serving(loaded) as address, Client(address) as client:
        result = client.attribute("The lazy dog", decoding=Decoding(ignore_eos=True), timeout=60).result()
    assert len(result.source) + len(result.steps) == 20


def test_prompt_and_continuation_share_the_positions(zoo):
    loaded = zoo("gpt2")
    with serving(loaded) as address, stub(address) as service:
        message = pb.AttributeRequest(source=text.Text(text="dog " * 300))
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(message, timeout=60))
        assert "source.text" in raised.value.details()
        prompt = pb.AttributeRequest(source=text.Text(text="dog"), decoding=text.Decoding(ignore_eos=True))
        steps = steps_of(list(service.Attribute(prompt, timeout=120)))
        tokens = len(loaded.tokenizer.encode_source("dog").ids)
        assert len(steps) == loaded.max_target_tokens - tokens


def test_a_prompt_longer_than_the_configurations_length_is_said(zoo, monkeypatch):
    loaded = zoo("gpt2")
    monkeypatch.setattr(loaded.model.generation_config, "max_length", 3)
    with serving(loaded) as address, Client(address) as client:
        with pytest.raises(InvalidArgumentError) as raised:
            client.attribute("The lazy dog does not want to", timeout=60).result()
        assert raised.value.field == "decoding.max_new_tokens"
        decoding = Decoding(max_new_tokens=2, ignore_eos=True)
        assert len(client.attribute("The lazy dog does not", decoding=decoding, timeout=60).result().steps) == 2
