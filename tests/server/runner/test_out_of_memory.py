"""Memory that lacks at any operation of a runner ends one request as a rule, and changes no number of the others.

Where it lacks right after tokens were drawn, it ends the requests of that step: they cannot be drawn again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from combinations import slow_except
from memory_lack import MemoryLack
from mixed_requests import Run, alone, assert_same, mixed_requests, slots_run
from model_zoo import build_model
from sidelight.server.errors import OUT_OF_MEMORY, RequestError
from sidelight.server.models.loader import LoadedModel, load
from sidelight.server.request import Request
from sidelight.server.runner.decode_step import DecodeStep
from sidelight.server.runner.sequence import Sequence

NUM_REQUESTS = 7
NUM_SLOTS = 10  # the last request is a beam search, and takes three


def run_all(run: Run, requests: list[Request], lack: MemoryLack) -> list[Sequence | Exception]:
    """Runs requests to their ends, with a lack of memory in all that the runner does."""
    with lack:
        added = run.add(requests)
    prefilling = [sequence for sequence in run.live if sequence.is_prefilling]
    while prefilling:
        for sequence in prefilling:
            try:
                with lack:
                    run.runner.prefill(sequence)
            except Exception as error:  # noqa: PERF203
                run.faults[sequence] = error
                run.remove(sequence)
        prefilling = [sequence for sequence in run.live if sequence.is_prefilling]
    decode = run.runner.decode

    def with_lack(sequences):
        with lack:
            return decode(sequences)

    run.runner.decode = with_lack  # pyright: ignore[reportAttributeAccessIssue]
    run.finish()
    return added


def check(loaded: LoadedModel, requests: list[Request], expected: list, at: int) -> int:
    """Checks a run in which memory lacks at one operation. Returns how many requests have not finished."""
    run = slots_run(loaded, NUM_SLOTS)
    added = run_all(run, requests, MemoryLack(lambda number: number == at))
    num_shed = 0
    for entry, theirs in zip(added, expected, strict=True):
        fault = entry if isinstance(entry, Exception) else run.faults.get(entry)
        if fault is None:
            assert_same(run.outputs[entry], theirs)
        else:
            num_shed += 1
            assert isinstance(fault, RequestError) or "memory" in repr(fault).lower(), fault
            assert not isinstance(fault, RequestError) or fault.reason == OUT_OF_MEMORY
    assert run.runner.num_free_slots == NUM_SLOTS
    return num_shed


@torch.inference_mode()
def test_tokens_that_are_chosen_stay(bundled, monkeypatch):
    """Each step of several requests fails after it has chosen tokens, and is taken again one by one."""
    requests = mixed_requests(bundled, "marian", NUM_REQUESTS)
    expected = alone(bundled, requests)
    collect, num_failed = DecodeStep._collect, 0

    def fail_together(step, plan, batch, *args):
        nonlocal num_failed
        if len(batch) > 1:
            num_failed += 1
            raise RuntimeError("planted")
        return collect(step, plan, batch, *args)

    monkeypatch.setattr(DecodeStep, "_collect", fail_together)
    run = slots_run(bundled, NUM_SLOTS)
    sequences = run.add_all(requests)
    run.finish()
    assert num_failed > 10
    for sequence, theirs in zip(sequences, expected, strict=True):
        assert_same(run.outputs[sequence], theirs)


@pytest.mark.parametrize("name", slow_except(["marian", "gpt2", "t5"], {"marian"}))
@pytest.mark.parametrize("num_places", [4, pytest.param(60, marks=pytest.mark.slow)])
@torch.inference_mode()
def test_memory_that_lacks_anywhere_changes_no_other_request(name, num_places, tmp_path: Path):
    loaded = load(build_model(name, tmp_path))
    requests = mixed_requests(loaded, name, NUM_REQUESTS)
    expected = alone(loaded, requests)
    sound = MemoryLack(lambda _: False)
    run_all(slots_run(loaded, NUM_SLOTS), requests, sound)
    places = torch.randint(1, sound.count + 1, (num_places,), generator=torch.Generator().manual_seed(5)).tolist()
    shed = [check(loaded, requests, expected, place) for place in places]
    print(f"{name}: {sound.count} operations; requests that have ended: {Counter(shed)}")
    assert 0 in shed
