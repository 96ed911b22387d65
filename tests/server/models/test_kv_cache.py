"""The KV cache stores keys and values where the next step finds them, in either layout."""

from __future__ import annotations

import pytest
import torch
from sidelight.server.models.kv_cache import KVCache, KVLayout, KVShape

OWN, SOURCE = [KVShape(2, 4, 3), KVShape(2, 4, 3)], [KVShape(2, 4, 3)]
LAYOUTS: tuple[KVLayout, ...] = ("head_major", "position_major")


@pytest.fixture(params=LAYOUTS)
def cache(request) -> KVCache:
    return KVCache(3, OWN, 8, SOURCE, 6, torch.float32, torch.device("cpu"), layout=request.param)


def fill(cache: KVCache, slot: int, length: int, source_length: int) -> None:
    """Random keys and values, stored as a backend stores them."""
    cache.begin_prefill(slot, 0, length, source_length)
    for layer, shape in enumerate(OWN):
        keys = torch.randn(1, shape.heads, length, shape.key_width)
        cache.own.update(keys, torch.randn(1, shape.heads, length, shape.value_width), layer)
    cache.end_prefill()
    for layer, shape in enumerate(SOURCE):
        keys = torch.randn(shape.heads, source_length, shape.key_width)
        cache.write_source(slot, layer, keys, torch.randn(shape.heads, source_length, shape.value_width))
    cache.source_lengths[slot] = source_length


def contents(cache: KVCache, slot: int) -> list[torch.Tensor]:
    layers = (*cache.own.slot_layers, *cache.source_layers)
    tensors = [numbers[slot].clone() for layer in layers for numbers in (layer.all_keys, layer.all_values)]
    return [*tensors, cache.own.lengths[slot].clone(), cache.source_lengths[slot].clone()]


def assert_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_a_prefill_in_two_chunks_is_one_in_one(cache):
    keys, values = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 3)
    for begin, end in ((0, 3), (3, 5)):
        cache.begin_prefill(1, begin, end - begin, 0)
        assert cache.own.get_seq_length() == begin
        for layer in range(len(OWN)):
            seen = cache.own.update(keys[:, :, begin:end], values[:, :, begin:end], layer)
            assert torch.equal(seen[0], keys[:, :, :end])
            assert torch.equal(seen[1], values[:, :, :end])
        cache.end_prefill()
    assert cache.own.lengths[:, 0].tolist() == [0, 5, 0]


def test_a_step_writes_behind_the_length_of_each_slot(cache):
    fill(cache, 0, 2, 3)
    fill(cache, 2, 4, 5)
    before = contents(cache, 2)
    cache.begin_decode(slice(0, 3), 5, 5)
    cache.bind_views()
    assert cache.stepping == (0, 3, 5, 5)
    keys, values = torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 3)
    seen = cache.own.update(keys, values, 0)
    for slot, position in ((0, 2), (1, 0), (2, 4)):
        assert torch.equal(seen[0][slot, :, position], keys[slot, :, 0])
        assert torch.equal(seen[1][slot, :, position], values[slot, :, 0])
    assert torch.equal(seen[0][2, :, :4], before[0][:, :4])
    assert cache.own_mask()[:, 0, 0].sum(1).tolist() == [3, 1, 5]
    assert cache.own_mask(2)[:, 0, 0].sum(1).tolist() == [2, 1, 2]
    assert cache.source_mask()[:, 0, 0].sum(1).tolist() == [3, 1, 5]
    lengths = cache.step_lengths()
    assert (lengths["decoder_self"].tolist(), lengths["cross"].tolist()) == ([3, 1, 5], [3, 1, 5])
    cache.advance(torch.tensor([0, 2]))
    assert cache.own.lengths[:, 0].tolist() == [3, 0, 5]


def test_a_uniform_step_needs_no_masks(cache):
    cache.begin_decode(slice(0, 2), 1, 1, is_uniform=True)
    assert cache.step_masks() == (None, None)
    cache.begin_decode(slice(0, 2), 1, 1)
    assert all(mask is not None for mask in cache.step_masks())


def test_a_moved_slot_and_a_swapped_slot_hold_what_they_held(cache):
    fill(cache, 2, 4, 5)
    before = contents(cache, 2)
    cache.move(2, 0, 4, 5)
    assert_equal(contents(cache, 0), before)
    swapped = cache.swap_out(2, 4, 5)
    cache.clear(2, 4, 5)
    assert not any(numbers.any() for numbers in contents(cache, 2)[:-1])
    assert contents(cache, 2)[-1].tolist() == [1]
    cache.swap_in(1, swapped)
    assert_equal(contents(cache, 1), before)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_slot_begins_at_a_line_of_the_processors_cache(layout):
    cache = KVCache(3, [KVShape(1, 3, 5)], 7, [], 0, torch.float32, torch.device("cpu"), layout=layout)
    (layer,) = cache.own.slot_layers
    assert all(
        numbers[slot].data_ptr() % 64 == 0 for numbers in (layer.all_keys, layer.all_values) for slot in range(3)
    )
