"""How many slots there are."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from harness import request, serving, stub
from sidelight.server import memory
from sidelight.server.engine import Limits
from sidelight.server.memory import free_bytes, slots_within
from sidelight.server.slots import Shape, bytes_of_slot


def test_a_slot_takes_what_its_layers_keep(bundled):
    import torch

    own, source = [Shape(4, 16, 8)] * 2, [Shape(4, 16, 16)] * 3
    assert bytes_of_slot(own, 10, source, 7, torch.float32) == 4 * (2 * 10 * 4 * 24 + 3 * 7 * 4 * 32)
    slots = bundled.layout.slots(3)
    kept = [each for layer in (*slots.own.layers, *slots._source_layers) for each in (layer.all_keys, layer.all_values)]
    assert sum(each.nbytes for each in kept) == 3 * bundled.layout.bytes_of_slot


@pytest.mark.parametrize(("share", "count"), [(10.5, 10), (0.3, 1), (1000, 32)])
def test_slots_are_those_that_fit(bundled, monkeypatch, share, count):
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(2 * share * bundled.layout.bytes_of_slot))
    assert slots_within(bundled, 32, 0.5) == count


def test_no_slots_where_a_model_has_no_layout(bundled):
    assert slots_within(replace(bundled, layout=None), 32, 0.5) == 0
    assert free_bytes(bundled.model.device) > 0


def test_one_by_one_where_a_model_has_no_layout(bundled):
    with serving(replace(bundled, layout=None)) as address, stub(address) as service:
        responses = list(service.Attribute(request("I don't want to be your friend."), timeout=60))
    assert responses[-1].finished.text == "Ich will nicht dein Freund sein."


def test_the_slots_are_told_at_start(bundled, caplog):
    with caplog.at_level(logging.INFO), serving(bundled, limits=Limits(running=3)):
        pass
    assert f"3 slots of {bundled.max_source_tokens} source" in caplog.text
