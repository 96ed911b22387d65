"""A batch that requests join and leave at any step writes for each what it writes alone."""

from __future__ import annotations

import pytest
import torch
from combinations import slow_except
from hypothesis import Phase, given, settings
from mixed_requests import (
    BEGINNINGS,
    IN_SLOTS,
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
from sidelight.server.errors import RequestError
from sidelight.server.runner import prefill
from sidelight.server.runner.step_recorder import StepRecorder
from sidelight.server.sampling.sampling_plan import CustomProcessors

# How many orders are tried: fewer of families that differ from another one in their modules, not in their caches.
ORDERS = {"marian": 12, "t5": 12, "gpt2": 12, "gemma3": 12}


# One of each architecture.
@pytest.mark.parametrize("name", slow_except(IN_SLOTS, {"marian", "gpt2"}))
def test_any_order_of_joining_and_leaving(name, zoo):
    loaded = zoo(name)
    requests = mixed_requests(loaded, name, 7)
    expected = alone(loaded, requests)

    @settings(
        deadline=None, max_examples=ORDERS.get(name, 4), derandomize=True, phases=[Phase.explicit, Phase.generate]
    )
    @given(BEGINNINGS)
    def check(beginning):
        for number, outputs in together(loaded, requests, then_one_by_one(beginning)).items():
            assert_same(outputs, expected[number])

    check()


@pytest.mark.parametrize("name", ["marian", "t5", "gpt2"])
def test_the_sequences_that_stay_are_compacted(name, zoo):
    loaded = zoo(name)
    requests = mixed_requests(loaded, name, 7)
    expected = alone(loaded, requests)
    with torch.inference_mode():
        run = slots_run(loaded, 9)
        sequences = run.add_all(requests)
        run.step()
        for sequence in sequences[1:6]:
            run.remove(sequence)
        run.step()
        # The last request is a beam search, whose slots were 6 to 8.
        assert sorted(sequence.slot for sequence in (sequences[0], *sequences[6].members)) == [0, 1, 6, 7]
        run.finish()
        for number in (0, 6):
            assert_same(run.outputs[sequences[number]], expected[number])


def test_long_prompts_are_read_in_parts(zoo, monkeypatch):
    """Beyond the window of a layer, too."""
    monkeypatch.setattr(prefill, "_CHUNK", 5)
    for name in ("gpt2", "gemma3"):
        loaded = zoo(name)
        messages = [message(loaded, FAMILIES[name], number) for number in (0, 3, 5, 6)]
        messages[1].source.text = " ".join(SENTENCES[:3])
        requests = [validate_request(each, loaded, "") for each in messages]
        assert len(requests[1].source.ids) > 20
        events = together(loaded, requests, iter([(3, -1, -1)] * 200))
        for number, theirs in enumerate(alone(loaded, requests)):
            assert_same(events[number], theirs)


def test_out_of_memory_is_met_by_halves(bundled, monkeypatch):
    requests = mixed_requests(bundled, "marian", 6)
    expected = alone(bundled, requests)
    limit_memory(monkeypatch, bundled, 2)
    events = together(bundled, requests, iter([(6, -1, -1)] * 200), slots=6)
    for number, theirs in enumerate(expected):
        assert_same(events[number], theirs)


@pytest.mark.parametrize(("owner", "method"), [(StepRecorder, "__init__"), (StepRecorder, "targets")])
def test_an_error_of_one_sequence_ends_no_other(bundled, monkeypatch, owner, method):
    """Before the model runs, and within the model."""
    requests = [request for request in mixed_requests(bundled, "marian", 7) if request.beam is None]
    expected = alone(bundled, requests)
    sound = getattr(owner, method)
    plan = []

    def broken(recorder, *args, **kwargs):
        sequences = args[0] if method == "__init__" else [s for group in recorder._groups for s in group.sequences]
        if any(sequence.plan is plan[0] for sequence in sequences):
            raise RuntimeError("broken")
        return sound(recorder, *args, **kwargs)

    monkeypatch.setattr(owner, method, broken)
    with torch.inference_mode():
        for spoilt in range(2):
            run = slots_run(bundled, len(requests))
            sequences = run.add_all(requests)
            plan[:] = [sequences[spoilt].plan]
            run.finish()
            for sequence, theirs in zip(sequences, expected, strict=True):
                if sequence.plan is plan[0]:
                    assert isinstance(run.faults[sequence], RuntimeError)
                else:
                    assert_same(run.outputs[sequence], theirs)


def test_out_of_memory_alone_ends_the_request(bundled, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(bundled.backend), "decode", none)
    with torch.inference_mode():
        run = slots_run(bundled, 2)
        (sequence,) = run.add_all(mixed_requests(bundled, "marian", 1))
        run.step()
    assert isinstance(run.faults[sequence], RequestError)
    assert "memory" in str(run.faults[sequence])


def test_a_source_that_cannot_be_read_keeps_no_other_out(bundled, monkeypatch):
    requests = mixed_requests(bundled, "marian", 3)
    expected = alone(bundled, requests)
    prefill_sources = bundled.backend.prefill_sources

    def broken(ids, lengths, cache):
        source = requests[1].source.ids
        if any(source[0] == row[0] and len(row) >= len(source) for row in ids.tolist()):
            raise RuntimeError("broken")
        prefill_sources(ids, lengths, cache)

    monkeypatch.setattr(bundled.backend, "prefill_sources", broken)
    with torch.inference_mode():
        run = slots_run(bundled, 3)
        first, fault, last = run.add(requests)
        assert isinstance(fault, RuntimeError)
        assert run.runner.num_free_slots == 1
        run.finish()
    for number, sequence in ((0, first), (2, last)):
        assert_same(run.outputs[sequence], expected[number])


@pytest.mark.parametrize("how", ["leaves", "is preempted"])
def test_nan_of_a_sequence_harms_no_sequence_after_it(how, bundled):
    """The sequence goes before a step has shown that its cache holds NaN."""
    with torch.inference_mode():
        run = slots_run(bundled, 4)
        *_, bad = run.add_all(mixed_requests(bundled, "marian", 4))
        run.step()
        cache = run.runner._cache
        for layer in (*cache.own.slot_layers, *cache.source_layers):
            layer.all_keys[bad.slot] = layer.all_values[bad.slot] = 0
        for layer in cache.own.slot_layers:
            layer.all_values[bad.slot, :, : bad.num_cached + 1] = float("nan")
        for layer in cache.source_layers:
            layer.all_keys[bad.slot, :, : bad.source_length] = float("nan")
        if how == "leaves":
            run.remove(bad)
        else:
            run.runner.preempt(bad)
        for layer in (*cache.own.slot_layers, *cache.source_layers):
            assert layer.all_keys[3].isfinite().all()
            assert layer.all_values[3].isfinite().all()


@pytest.mark.parametrize("fault", ["not a number", "a processor"])
def test_a_fault_is_its_requests_alone(fault, bundled):
    requests = mixed_requests(bundled, "marian", 3)
    expected = alone(bundled, requests)
    with torch.inference_mode():
        run = slots_run(bundled, 3)
        sequences = run.add_all(requests)
        if fault == "a processor":
            broken = torch.zeros(1, 1, dtype=torch.int64)
            run.runner._sampler._requests[sequences[1].slot].custom = CustomProcessors(lambda *_: 1 / 0, broken)
        else:
            for layer in run.runner._cache.source_layers:
                layer.all_values[sequences[1].slot] = float("nan")
        run.finish()
        assert list(run.faults) == [sequences[1]]
        for number in (0, 2):
            assert_same(run.outputs[sequences[number]], expected[number])
        # The next sequence in the slot finds nothing of the fault.
        (sequence,) = run.add_all([requests[1]])
        run.finish()
        assert_same(run.outputs[sequence], expected[1])
