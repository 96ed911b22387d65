"""How many slots there are."""

from __future__ import annotations

import logging
import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import request, serving, stub
from mixed_requests import slots_run
from model_zoo import build_model
from sidelight.server.api.validation import validate_request
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.memory import free_bytes
from sidelight.server.models.kv_cache import KVCache, KVShape, bytes_per_slot, zeros
from sidelight.server.models.loader import load
from sidelight.server.runner import slot_budget
from sidelight.server.runner.slot_budget import divide_memory, slots_that_fit


def test_a_slot_takes_what_its_layers_keep(bundled):
    own, source = [KVShape(4, 16, 8)] * 2, [KVShape(4, 16, 16)] * 3
    assert bytes_per_slot(own, 10, source, 7, torch.float32) == 4 * (2 * 10 * 4 * 24 + 3 * 7 * 4 * 32)
    assert sum(each.nbytes for each in kept_by(bundled.backend.new_kv_cache(3))) == 3 * bundled.backend.bytes_per_slot


def kept_by(cache: KVCache) -> list[torch.Tensor]:
    """The keys and values of all layers."""
    return [each for layer in (*cache.own.layers, *cache.source_layers) for each in (layer.all_keys, layer.all_values)]


@pytest.mark.parametrize(("share", "count"), [(10.5, 10), (0.3, 1), (1000, 32)])
def test_slots_are_those_that_fit(bundled, monkeypatch, share, count):
    monkeypatch.setattr(slot_budget, "free_bytes", lambda _: int(2 * share * bundled.backend.bytes_per_slot))
    assert slots_that_fit(bundled, 32, 0.5) == count


def test_fewer_slots_than_asked_for_are_told(bundled, monkeypatch, caplog):
    monkeypatch.setattr(slot_budget, "free_bytes", lambda _: 10 * bundled.backend.bytes_per_slot)
    assert slots_that_fit(bundled, 1_000_000, 0.5) == 5
    assert "5 slots instead of 1000000" in caplog.text


@pytest.mark.parametrize("name", ["bundled", "gpt2"])
def test_slots_take_memory_as_they_are_used(bundled, name, tmp_path):
    """As many as a quarter of the free memory has room for, of which three are used.

    What else the process holds does not count: other tests in it may take or free memory meanwhile.
    """
    loaded = bundled if name == "bundled" else load(build_model(name, tmp_path))

    count = slots_that_fit(loaded, 4_000_000_000 // loaded.backend.bytes_per_slot, 0.25)
    with torch.inference_mode():
        run = slots_run(loaded, count)
        sequences = run.add_all([validate_request(request("A dog."), loaded, str(number)) for number in range(3)])
        assert all(sequence.slot < 3 for sequence in sequences)
        run.step()
    assert not run.faults
    kept = kept_by(run.runner._cache)
    assert 0 < sum(map(resident_bytes, kept)) < 0.2 * sum(each.nbytes for each in kept)


def resident_bytes(tensor: torch.Tensor) -> int:
    """How much of the memory of a tensor the kernel has given to the process, in whole pages."""
    begin, end = tensor.data_ptr() // mmap.PAGESIZE, -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE)
    # One number for each page. Its highest bit says that the page is in memory.
    pages = np.fromfile("/proc/self/pagemap", np.uint64, end - begin, offset=8 * begin)
    assert len(pages) == end - begin
    return int((pages >> np.uint64(63)).sum()) * mmap.PAGESIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1,), (0, 4)])
def test_zeros_are_zeros(dtype, shape):
    tensor = zeros(shape, dtype, torch.device("cpu"))
    assert torch.equal(tensor, torch.zeros(shape, dtype=dtype))
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % 64 == 0 or not tensor.numel()
    tensor += 1
    assert torch.equal(tensor, torch.ones(shape, dtype=dtype))


def test_a_model_without_a_backend_runs_as_many_as_asked(bundled):
    assert slots_that_fit(replace(bundled, backend=None), 32, 0.5) == 32
    assert free_bytes(bundled.model.device) > 0


def test_one_by_one_where_a_model_has_no_layout(bundled):
    with serving(replace(bundled, backend=None)) as address, stub(address) as service:
        responses = list(service.Attribute(request("I don't want to be your friend."), timeout=60))
    assert responses[-1].finished.text == "Ich will nicht dein Freund sein."


def test_the_slots_are_told_at_start(bundled, caplog):
    with caplog.at_level(logging.INFO), serving(bundled, limits=EngineConfig(max_running=3)):
        pass
    assert f"3 slots of {bundled.max_source_tokens} source" in caplog.text


def test_models_of_a_device_share_its_memory_by_what_their_caches_need(bundled, monkeypatch):
    size = bundled.backend.bytes_per_slot
    models = [bundled, bundled, replace(bundled, backend=None)]
    assert divide_memory(models[:1], [7], 0.5) == [0.5]
    shares = divide_memory(models, [30, 10, 5], 0.5)
    assert shares == [0.375, 0.125, 0.5]
    monkeypatch.setattr(slot_budget, "free_bytes", lambda _: 40 * size)  # half of it is for half of the slots
    assert [slots_that_fit(*each) for each in zip(models, [30, 10, 5], shares, strict=True)] == [15, 5, 5]
