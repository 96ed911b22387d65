"""A batch that requests join and leave at any step writes for each what it writes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batches import BEGINNINGS, IN_SLOTS, alone, assert_same, jobs_of, message, read_all, then_one_by_one, together
from hypothesis import Phase, given, settings
from model_zoo import FAMILIES, SENTENCES, build_model
from sidelight.server.api.validation import resolve
from sidelight.server.errors import RequestError
from sidelight.server.models.loader import load
from sidelight.server.models.transformers_backend import TransformersBackend
from sidelight.server.runner.model_runner import ModelRunner, Seat
from sidelight.server.sampling import sampler as choosing


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("name", IN_SLOTS)
def test_any_order_of_joining_and_leaving(name, folder):
    loaded = load(build_model(name, folder))
    jobs = jobs_of(loaded, name, 7)
    expected = alone(loaded, jobs)

    @settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.explicit, Phase.generate])
    @given(BEGINNINGS)
    def check(beginning):
        for number, events in together(loaded, jobs, then_one_by_one(beginning)).items():
            assert_same(events, expected[number])

    check()


@pytest.mark.parametrize("name", ["marian", "t5", "gpt2"])
def test_those_who_stay_close_ranks(name, folder):
    loaded = load(build_model(name, folder))
    jobs = jobs_of(loaded, name, 7)
    expected = alone(loaded, jobs)
    with torch.inference_mode():
        batch = ModelRunner(loaded, loaded.backend, 7)
        seats = batch.join(jobs)
        read_all(batch, seats)
        told = {seat: list(seat.news) for seat in seats}
        stay = [seats[0], seats[6]]
        for round_ in range(2):
            for seat, events in list(batch.step(stay if round_ else seats)):
                assert isinstance(events, list)
                told[seat] += events
            for seat in [] if round_ else seats[1:6]:
                batch.leave(seat)
        assert [seat.slot for seat in stay] == [0, 1]
        for number in (0, 6):
            seat = seats[number]
            while not seat.writer.ended:
                ((_, events),) = batch.step([seat])
                assert isinstance(events, list)
                told[seat] += events
            assert_same(told[seat], expected[number])


def test_long_prompts_are_read_in_parts(folder, monkeypatch):
    """Beyond the window of a layer, too."""
    import sidelight.server.runner.model_runner as batch_module

    monkeypatch.setattr(batch_module, "_CHUNK", 5)
    for name in ("gpt2", "gemma3"):
        loaded = load(build_model(name, folder))
        messages = [message(loaded, FAMILIES[name], number) for number in (0, 3, 5)]
        messages[1].source.text = " ".join(SENTENCES[:3])
        jobs = [resolve(each, loaded, "") for each in messages]
        assert len(jobs[1].source.ids) > 20
        events = together(loaded, jobs, iter([(3, -1, -1)] * 200))
        for number, theirs in enumerate(alone(loaded, jobs)):
            assert_same(events[number], theirs)


def test_out_of_memory_is_met_by_halves(bundled, monkeypatch):
    jobs = jobs_of(bundled, "marian", 6)
    expected = alone(bundled, jobs)
    step = TransformersBackend.decode

    def small(backend, tokens, *args):
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return step(backend, tokens, *args)

    monkeypatch.setattr(TransformersBackend, "decode", small)
    events = together(bundled, jobs, iter([(6, -1, -1)] * 200), slots=6)
    for number, theirs in enumerate(expected):
        assert_same(events[number], theirs)


def test_out_of_memory_alone_ends_the_request(bundled, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TransformersBackend, "decode", none)
    with torch.inference_mode():
        batch = ModelRunner(bundled, bundled.backend, 2)
        (seat,) = batch.join(jobs_of(bundled, "marian", 1))
        ((_, told),) = batch.step([seat])
    assert isinstance(told, RequestError)
    assert "memory" in str(told)


def test_a_source_that_cannot_be_read_keeps_nobody_out(bundled, monkeypatch):
    jobs = jobs_of(bundled, "marian", 3)
    expected = alone(bundled, jobs)
    read_sources = bundled.backend.prefill_sources

    def broken(ids, lengths, slots):
        if any(jobs[1].source.ids[0] == row[0] and len(row) >= len(jobs[1].source.ids) for row in ids.tolist()):
            raise RuntimeError("broken")
        read_sources(ids, lengths, slots)

    monkeypatch.setattr(bundled.backend, "read_sources", broken)
    with torch.inference_mode():
        batch = ModelRunner(bundled, bundled.backend, 3)
        first, fault, last = batch.join(jobs)
        assert isinstance(fault, RuntimeError)
        assert batch.room == 1
        for number, seat in ((0, first), (2, last)):
            assert isinstance(seat, Seat)
            told = list(seat.news)
            while not seat.writer.ended:
                ((_, events),) = batch.step([seat])
                told.extend(events)
            assert_same(told, expected[number])


@pytest.mark.parametrize("how", ["leaves", "is parked"])
def test_what_nobody_noticed_harms_nobody_after(how, bundled):
    """Somebody goes whose numbers are none, before a step has shown it."""
    jobs = jobs_of(bundled, "marian", 4)
    with torch.inference_mode():
        batch = ModelRunner(bundled, bundled.backend, 4)
        seats = batch.join(jobs)
        bad = seats[3]
        list(batch.step(seats))
        for layer in (*batch._slots.own.slot_layers, *batch._slots._source_layers):
            layer.all_keys[bad.slot] = layer.all_values[bad.slot] = 0
        for layer in batch._slots.own.slot_layers:
            layer.all_values[bad.slot, :, : bad.length + 1] = float("nan")
        for layer in batch._slots._source_layers:
            layer.all_keys[bad.slot, :, : bad.source_length] = float("nan")
        if how == "leaves":
            batch.leave(bad)
        else:
            batch.park(bad)
        for layer in (*batch._slots.own.slot_layers, *batch._slots._source_layers):
            assert layer.all_keys[3].isfinite().all()
            assert layer.all_values[3].isfinite().all()


@pytest.mark.parametrize("fault", ["not a number", "a processor"])
def test_a_fault_is_its_requests_alone(fault, bundled):
    jobs = jobs_of(bundled, "marian", 3)
    expected = alone(bundled, jobs)
    with torch.inference_mode():
        batch = ModelRunner(bundled, bundled.backend, 3)
        seats = batch.join(jobs)
        read_all(batch, seats)
        events = [list(seat.news) for seat in seats]
        if fault == "a processor":
            broken = torch.zeros(1, 1, dtype=torch.int64)
            batch._sampler._slots[seats[1].slot].alone = choosing._Alone(lambda *_: 1 / 0, broken)
        else:
            for layer in batch._slots._source_layers:
                layer.all_values[seats[1].slot] = float("nan")
        running = list(seats)
        faults = []
        while running:
            for seat, told in list(batch.step(running)):
                if isinstance(told, Exception):
                    faults.append(seat)
                else:
                    events[seats.index(seat)].extend(told)
                if isinstance(told, Exception) or seat.writer.ended:
                    running.remove(seat)
                    batch.leave(seat)
        assert faults == [seats[1]]
        for number in (0, 2):
            assert_same(events[number], expected[number])
        # Whoever comes next into the slot finds nothing of it.
        (seat,) = batch.join([jobs[1]])
        read_all(batch, [seat])
        told = list(seat.news)
        while not seat.writer.ended:
            ((_, events_of),) = batch.step([seat])
            assert isinstance(events_of, list)
            told.extend(events_of)
        assert_same(told, expected[1])
