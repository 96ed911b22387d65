"""A request with a contrast has two slots. It joins, leaves, waits and fails as any other, and changes no neighbour."""

from __future__ import annotations

import pytest
import torch
from hypothesis import Phase, given, settings
from mixed_requests import (
    BEGINNINGS,
    alone,
    assert_same,
    limit_memory,
    message,
    mixed_requests,
    slots_run,
    then_one_by_one,
    together,
)
from model_zoo import FAMILIES, SENTENCES
from sidelight.server.api.validation import validate_request
from sidelight.server.models.loader import LoadedModel
from sidelight.server.request import Request
from sidelight.server.runner import prefill
from sidelight.server.runner.unbatched_runner import UnbatchedRunner
from sidelight.v1 import attention_pb2 as attention

SCORES = [attention.SCORE_KL_DIVERGENCE, attention.SCORE_CONTRAST_LOGITS]


def contrasted_request(loaded: LoadedModel, name: str, number: int) -> Request:
    made = message(loaded, FAMILIES[name], number)
    made.contrast.source.text = SENTENCES[(number + 1) % len(SENTENCES)]
    if number % 2:
        made.contrast.kl_top_k = 5
    made.scores.extend(SCORES)
    return validate_request(made, loaded, f"r{number}")


def requests_of(loaded: LoadedModel, name: str, count: int = 7) -> list[Request]:
    """Requests of which every other one has a contrast."""
    plain = mixed_requests(loaded, name, count)
    return [request if i % 2 else contrasted_request(loaded, name, i) for i, request in enumerate(plain)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "t5", "gpt2", "gemma3"])
def test_any_order_of_joining_and_leaving(name, zoo):
    loaded = zoo(name)
    requests = requests_of(loaded, name)
    expected = alone(loaded, requests)

    @settings(deadline=None, max_examples=6, derandomize=True, phases=[Phase.explicit, Phase.generate])
    @given(BEGINNINGS)
    def check(beginning):
        for number, outputs in together(loaded, requests, then_one_by_one(beginning), slots=5).items():
            assert_same(outputs, expected[number])

    check()


def test_both_sequences_are_compacted(zoo):
    loaded = zoo("gpt2")
    requests = [*requests_of(loaded, "gpt2", 6), contrasted_request(loaded, "gpt2", 4)]
    expected = alone(loaded, requests)
    with torch.inference_mode():
        run = slots_run(loaded, 11)
        sequences = run.add_all(requests)
        run.step()
        for sequence in sequences[1:6]:
            run.remove(sequence)
        run.step()
        assert [[member.slot for member in sequences[number].members] for number in (0, 6)] == [[0, 1], [3, 2]]
        run.finish()
        assert run.runner.num_free_slots == 11
    for number in (0, 6):
        assert_same(run.outputs[sequences[number]], expected[number])


def test_both_prompts_are_read_in_parts(zoo, monkeypatch):
    monkeypatch.setattr(prefill, "_CHUNK", 5)
    loaded = zoo("gpt2")
    requests = [contrasted_request(loaded, "gpt2", number) for number in (2, 3)]
    events = together(loaded, requests, then_one_by_one([]))
    for number, theirs in enumerate(alone(loaded, requests)):
        assert_same(events[number], theirs)


def test_out_of_memory_is_met_by_halves(bundled, monkeypatch):
    requests = requests_of(bundled, "marian", 6)
    expected = alone(bundled, requests)
    limit_memory(monkeypatch, bundled, 3)
    events = together(bundled, requests, iter([(6, -1, -1)] * 200), slots=9)
    for number, theirs in enumerate(expected):
        assert_same(events[number], theirs)


def test_a_contrast_source_that_cannot_be_read_ends_its_request_alone(bundled, monkeypatch):
    requests = requests_of(bundled, "marian", 3)
    expected = alone(bundled, requests)
    prefill_sources = bundled.backend.prefill_sources
    source = requests[0].contrast.request.source.ids

    def broken(ids, lengths, cache):
        if source in [row[: len(source)] for row in ids.tolist()]:
            raise RuntimeError("broken")
        prefill_sources(ids, lengths, cache)

    monkeypatch.setattr(bundled.backend, "prefill_sources", broken)
    with torch.inference_mode():
        run = slots_run(bundled, 5)
        fault, second, third = run.add(requests)
        assert isinstance(fault, RuntimeError)
        assert run.runner.num_free_slots == 2
        while second.is_prefilling:
            run.runner.prefill(second)
        run.finish()
    for number, sequence in ((1, second), (2, third)):
        assert_same(run.outputs[sequence], expected[number])


def test_a_contrast_that_cannot_be_added_keeps_no_slot(bundled, monkeypatch):
    (request,) = requests_of(bundled, "marian", 1)
    with torch.inference_mode():
        run = slots_run(bundled, 2)
        add = run.runner._sampler.add

        def second(slot, *args):
            if slot == 1:
                raise ValueError("no")
            add(slot, *args)

        monkeypatch.setattr(run.runner._sampler, "add", second)
        (fault,) = run.add([request])
    assert isinstance(fault, ValueError)
    assert run.runner.num_free_slots == 2


def test_without_slots_a_contrast_counts_twice(zoo):
    loaded = zoo("fsmt")
    requests = requests_of(loaded, "fsmt", 2)
    runner = UnbatchedRunner(loaded, 4)
    with torch.inference_mode():
        first, _ = runner.add(requests)
        assert runner.num_free_slots == 1
        runner.preempt(first)
        assert runner.num_free_slots == 3
        runner.resume(first)
        runner.remove(first)
        assert runner.num_free_slots == 3
