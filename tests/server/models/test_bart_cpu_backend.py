"""Steps and sources as CPU programs: which models run so, whatever is captured, with any number of threads.

`test_bart_backend` and the tests of the model runner show that the numbers are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixed_requests import mixed_requests, then_one_by_one, together
from model_zoo import build_model
from sidelight.kernels.cpu import is_supported
from sidelight.server.capture import FullRecorder, LayerKey, record_to
from sidelight.server.layers import linear_kernels
from sidelight.server.models import LoadedModel, TargetBatch, bart_cpu_layers, bundled_model, load
from sidelight.server.models.bart_backend import BartBackend
from sidelight.server.models.bart_cpu_backend import BartCpuBackend
from sidelight.server.models.transformers_backend import TransformersBackend

pytestmark = pytest.mark.skipif(not is_supported(int8=True), reason="no programs on this machine")


@pytest.fixture(scope="module", params=["float32", "int8"])
def bundled(request) -> LoadedModel:
    return load(bundled_model(), dtype=request.param)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_bundled_model_runs_as_programs(bundled):
    assert type(bundled.backend) is BartCpuBackend


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_does_not_run_as_programs(dtype):
    backend = load(bundled_model(), dtype=dtype).backend
    assert backend is not None
    assert type(backend) is not BartCpuBackend


@pytest.mark.usefixtures("threads")
def test_threads_change_nothing(bundled):
    """To the bit: no number depends on the thread that computes it.

    The pass over what a beam search has found is torch's, whose sums depend on the number of threads.
    """
    jobs = [replace(job, scores=()) for job in mixed_requests(bundled, "marian", 10) if job.beam is None]
    torch.set_num_threads(1)
    expected = together(bundled, jobs, then_one_by_one([(3, -1, -1)]))
    for count in (2, 3):
        torch.set_num_threads(count)
        made = together(bundled, jobs, then_one_by_one([(3, -1, -1)]))
        for number, events in made.items():
            assert_equal(events, expected[number])


def test_neighbours_change_nothing(bundled):
    """To the bit as well, without logits processors, which torch runs on whole batches."""
    jobs = [replace(job, scores=()) for job in mixed_requests(bundled, "marian", 10)]
    by_itself = {number: together(bundled, [job], then_one_by_one([]))[0] for number, job in enumerate(jobs)}
    for number, events in together(bundled, jobs, then_one_by_one([(3, -1, -1), (1, -1, 2)])).items():
        assert_equal(events, by_itself[number])


def assert_equal(ours: list, theirs: list) -> None:
    """To the bit."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        for kind in ("cross", "decoder_self"):
            one, expected = getattr(mine, kind, None), getattr(other, kind, None)
            assert (one is None) == (expected is None)
            for values, wanted in zip(one or (), expected or (), strict=True):
                np.testing.assert_array_equal(values, wanted)
        assert getattr(mine, "token", None) == getattr(other, "token", None)


def test_int8_is_near_float32():
    """The hidden states of a step differ by the rounding to int8 alone."""
    made = []
    for dtype in ("float32", "int8"):
        backend = load(bundled_model(), dtype=dtype).backend
        with torch.inference_mode():
            slots = backend.new_kv_cache(2)
            backend.prefill_sources(torch.tensor([[5, 9, 7, 30, 2]]), {1: 5}, slots)
            slots.begin_decode(slice(1, 2), 1, 5)
            with record_to(None, padded=False):
                start = torch.tensor([[backend._model.config.decoder_start_token_id]])
                made.append(backend.decode(start, slots).clone())
    apart = (made[0] - made[1]).norm() / made[0].norm()
    assert 0 < apart < 0.05


@pytest.mark.parametrize("length", [1, 64, 65, 128, 129, 200])
def test_sources_of_any_length(bundled, length):
    """Sources of more than 128 tokens run by torch, and give the same keys and values."""
    backend = bundled.backend
    ids = torch.randint(5, 3000, (3, length), generator=torch.Generator().manual_seed(length))
    lengths = {2: length, 0: max(1, length // 2), 3: max(1, length - 1)}
    with torch.inference_mode():
        ours, theirs = backend.new_kv_cache(4), backend.new_kv_cache(4)
        backend.prefill_sources(ids, lengths, ours)
        backend.store_sources(backend.encode(ids, [*lengths.values()]), lengths, theirs)
        assert torch.equal(ours.source_lengths, theirs.source_lengths)
        for mine, other in zip(ours.source_layers, theirs.source_layers, strict=True):
            for name in ("all_keys", "all_values"):
                one, expected = getattr(mine, name), getattr(other, name)
                size = float(expected.abs().max())
                near = 1e-5 if bundled.precision == "float32" else 5e-2
                assert float((one - expected).abs().max()) < near * size
    assert not ours.source_layers[0].all_keys[1].any()


def test_rows_of_all_layers_are_recorded(bundled):
    backend = bundled.backend
    with torch.inference_mode():
        slots = backend.new_kv_cache(3)
        backend.prefill_sources(torch.tensor([[5, 9, 7, 30, 2]]), {1: 5}, slots)
        recorder = FullRecorder()
        slots.begin_decode(slice(0, 3), 1, 5)
        with record_to(recorder, padded=False):
            backend.decode(torch.tensor([[4], [5], [6]]), slots)
    kinds = [site.kind for site in recorder.results]
    assert kinds.count("cross") == kinds.count("decoder_self") == bundled.attention_layers.num_layers("cross")
    for result in recorder.results.values():
        torch.testing.assert_close(result.values.sum(2), torch.ones(3, 1, result.values.shape[3]))


def test_a_machine_without_programs(monkeypatch):
    monkeypatch.setattr(bart_cpu_layers, "is_supported", lambda **_: False)
    monkeypatch.setattr(linear_kernels, "is_supported", lambda **_: False)
    backend = load(bundled_model()).backend
    assert type(backend) is BartBackend


def test_an_activation_that_no_program_has(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bart_cpu_layers, "_ACTIVATIONS", {})
    backend = load(build_model("bart", tmp_path)).backend
    assert type(backend) is BartBackend
    assert "is not run by" not in caplog.text  # no fault


def test_programs_that_differ_are_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bart_cpu_layers, "_ACTIVATIONS", dict.fromkeys(bart_cpu_layers._ACTIVATIONS, "silu"))
    backend = load(build_model("mbart", tmp_path)).backend
    assert type(backend) is BartBackend
    assert "is not run by BartCpuBackend: its logits are " in caplog.text


@pytest.mark.parametrize("case", ["short", "long", "many"])
@torch.inference_mode()
def test_whole_targets_of_any_length_are_read_as_the_model_reads_them(bundled, case):
    """Long sequences, and more tokens than a program has rows for, run by the modules of transformers."""
    if case == "short":
        lengths, source_lengths = [1, 128, 5], [128, 1, 7]
    elif case == "long":
        lengths, source_lengths = [129, 2], [3, 130]
    else:
        lengths, source_lengths = [100] * 6, [4] * 6
    generator = torch.Generator().manual_seed(0)
    sources, targets = (
        torch.randint(2, 6000, (len(counts), max(counts)), generator=generator) for counts in (source_lengths, lengths)
    )
    backend, found, expected = bundled.backend, FullRecorder(), FullRecorder()
    batch = TargetBatch(sources, source_lengths, targets, lengths)
    with record_to(found, padded=True):
        output = backend.read_targets(batch)
    with record_to(expected, padded=True):
        same = TransformersBackend.read_targets(backend, batch)
    tolerance = 1e-4 if bundled.precision == "float32" else 0.3
    for row, length in enumerate(lengths):
        torch.testing.assert_close(output[row, :length], same[row, :length], atol=tolerance, rtol=tolerance)
        for key, tensors in found.results.items():
            seen = source_lengths[row] if key.kind == "cross" else length
            ours, theirs = (each.values[row, :length, :seen] for each in (tensors, expected.results[key]))
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("read_targets", [BartCpuBackend.read_targets, TransformersBackend.read_targets])
@torch.inference_mode()
def test_whole_targets_leave_in_slots_what_sources_and_prompts_leave(bundled, read_targets):
    lengths, source_lengths, slots = [9, 1, 30], [4, 20, 7], [3, 0, 1]
    generator = torch.Generator().manual_seed(1)
    sources, targets = (
        torch.randint(2, 6000, (len(counts), max(counts)), generator=generator) for counts in (source_lengths, lengths)
    )
    backend = bundled.backend
    found, expected = backend.new_kv_cache(4), backend.new_kv_cache(4)
    with record_to(None, padded=True):
        # Nothing behind the last attention is needed for keys and values.
        batch = TargetBatch(sources, source_lengths, targets, lengths, LayerKey("cross", 2), found, slots)
        assert read_targets(backend, batch) is None
    with record_to(None, padded=False):
        for row, slot in enumerate(slots):
            length, source_length = lengths[row], source_lengths[row]
            backend.prefill_sources(sources[row : row + 1, :source_length], {slot: source_length}, expected)
            expected.begin_prefill(slot, 0, length, source_length)
            backend.prefill(targets[row : row + 1, :length], expected)
    layers = [*found.own.slot_layers, *found.source_layers]
    others = [*expected.own.slot_layers, *expected.source_layers]
    tolerance = 1e-4 if bundled.precision == "float32" else 0.3
    for layer, other in zip(layers, others, strict=True):
        torch.testing.assert_close(layer.all_keys, other.all_keys, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(layer.all_values, other.all_values, atol=tolerance, rtol=tolerance)
