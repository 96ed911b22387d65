"""Packed results of every kernel and reference, to the byte: rounding, ties, and what must be left alone."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import IMPLS, assert_is, make_layer, poisoned
from sidelight.kernels import LayerSpec, decode, layout_into, rows

QUICK = ["rows", "decode"]
KERNELS = [*QUICK, "layout"]  # whose top-k takes Triton's interpreter long
PACKINGS = [("uint8", 0), ("uint8", 5), ("uint8", 40)]  # all, picked, sorted


def fill(kernel, layer, part, result, impl):
    if kernel == "rows":
        rows(layer.query, layer.key, layer.scoring, result, part, impl=impl)
    elif kernel == "decode":
        decode(layer.query, layer.key, layer.value, layer.scoring, result, part, impl=impl)
    else:
        given = torch.from_numpy(layer.probabilities()).float()
        layout_into([given], result, over_heads=part.over_heads, impl=impl)


def queries(kernel, count=5):
    return 1 if kernel == "decode" else count


def tensors(result):
    return [tensor for tensor in result[:4] if tensor is not None]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("top_k", [0, 7, 40])
def test_bytes_are_rounded_half_up(top_k, impl):
    """The greatest is 255/256, so a step is 1/256: whole and half steps are exact, and half to even would show."""
    halves = torch.arange(0, 511, dtype=torch.float32)[torch.randperm(511, generator=torch.Generator().manual_seed(0))]
    expected = ((halves + 1) / 2).floor()
    result = poisoned(1, 1, 511, 1, encoding="uint8", top_k=top_k)
    layout_into([(halves / 512).view(1, 1, 1, 511)], result, impl=impl)
    assert result.scales.item() == 1 / 256
    if top_k:
        assert torch.equal(result.positions.flatten().long(), halves.argsort(descending=True)[:top_k])
        expected = expected[result.positions.flatten().long()]
    assert torch.equal(result.values.flatten().float(), expected)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
def test_bytes_are_those_of_the_truth(kernel, impl):
    layer = make_layer(2, 4, 2, queries(kernel, 19), 70, 16)
    for part, how in ((LayerSpec(), {}), (LayerSpec(over_heads="max"), {"over_heads": "max"})):
        numbers = truth.columns([layer.probabilities()], **how)
        result = poisoned(2, numbers.shape[1], 70, numbers.shape[3], encoding="uint8")
        fill(kernel, layer, part, result, impl)
        scale = numbers.max(2, keepdims=True) / 255
        np.testing.assert_allclose(result.scales[:, :, None], scale, rtol=5e-6)
        steps = numbers / scale + 0.5
        # A number that lies halfway between two bytes, as far as float32 can tell, may go to either.
        certain = np.abs(steps - np.round(steps)) > 2e-3
        certain |= numbers == numbers.max(2, keepdims=True)
        assert certain.mean() > 0.98
        assert (result.values.numpy() == np.floor(steps + 1e-9))[certain].all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("top_k", [1, 5, 32, 33, 200])
@pytest.mark.parametrize("seen", [None, 50])
def test_of_equals_the_first_are_taken(seen, top_k, kernel, impl):
    """All numbers are equal; or one is greater and the others, unseen, are equal zeros."""
    mask = torch.ones(1, 1, 1, 100, dtype=torch.bool) if seen is None else torch.arange(100).eq(seen).view(1, 1, 1, 100)
    layer = make_layer(1, 2, 1, queries(kernel, 2), 100, 16, mask=mask)
    layer.query.zero_()
    order = list(range(100))
    if seen is not None:
        order.insert(0, order.pop(seen))
    result = poisoned(1, layer.query.shape[2], 100, 1, encoding="uint8", top_k=top_k)
    fill(kernel, layer, LayerSpec(over_heads="min"), result, impl)
    expected = torch.tensor(order[:top_k], dtype=torch.int32)[:, None].expand(result.positions.shape)
    assert torch.equal(result.positions, expected)
    assert torch.equal(result.values == 255, torch.ones_like(expected).bool() if seen is None else expected == seen)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
def test_picked_and_sorted_are_one(kernel, impl):
    """Up to 32 positions are picked by the kernel, more are sorted."""
    layer = make_layer(1, 2, 1, queries(kernel), 70, 16)
    picked, ordered = (poisoned(1, layer.query.shape[2], 70, 2, top_k=k) for k in (32, 33))
    for result in (picked, ordered):
        fill(kernel, layer, LayerSpec(), result, impl)
    assert torch.equal(picked.positions, ordered.positions[:, :, :32])
    np.testing.assert_allclose(picked.values, ordered.values[:, :, :32], atol=1e-7)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float16", 0), ("float32", 5)])
def test_all_is_written_and_nothing_that_was_there_matters(encoding, top_k, kernel, impl):
    """Bytes and positions cannot be NaN: what is left unwritten differs between two fills. And runs are equal."""
    layer = make_layer(1, 3, 3, queries(kernel), 37, 16)
    for part, columns in ((LayerSpec(), 3), (LayerSpec(over_heads="mean"), 1)):
        made = []
        for number in (0x55, 0x2A):
            result = poisoned(1, layer.query.shape[2], 37, columns, encoding=encoding, top_k=top_k)
            for tensor in tensors(result):
                tensor.fill_(number)
            fill(kernel, layer, part, result, impl)
            made.append(tensors(result))
        assert all(map(torch.equal, *made))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float32", 0)])
def test_other_columns_are_left_alone(encoding, top_k, kernel, impl):
    layer = make_layer(1, 4, 2, queries(kernel), 37, 16)
    expected = truth.columns([layer.probabilities()])
    for part, mine, numbers in (
        (LayerSpec(heads=(2, 1), column=1), [1, 2], expected[..., [2, 1]]),
        (LayerSpec(heads=(3, 0), columns=(4, 2)), [4, 2], expected[..., [3, 0]]),
        (LayerSpec(over_heads="max", column=3), [3], expected.max(3, keepdims=True)),
    ):
        result = poisoned(1, layer.query.shape[2], 37, 6, encoding=encoding, top_k=top_k)
        before = [tensor.clone() for tensor in tensors(result)]
        fill(kernel, layer, part, result, impl)
        others = [column for column in range(6) if column not in mine]
        for old, new in zip(before, tensors(result), strict=True):
            torch.testing.assert_close(new[..., others], old[..., others], rtol=0, atol=0, equal_nan=True)
        values, scales, positions = (None if tensor is None else tensor[..., mine] for tensor in result[:3])
        assert_is(result._replace(values=values, scales=scales, positions=positions), numbers, 2e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float32", 0)])
def test_until_the_last_layer_only_the_total_is_written(encoding, top_k, kernel, impl):
    layers = [make_layer(2, 4, 2, queries(kernel), 37, 16, seed=seed) for seed in range(2)]
    result = poisoned(2, layers[0].query.shape[2], 37, 1, encoding=encoding, top_k=top_k, pools_layers=True)
    before = [tensor.clone() for tensor in tensors(result)[:-1]]
    part = LayerSpec(over_heads="sum", over_layers="max", layer_count=2)
    fill(kernel, layers[0], part._replace(last=False), result, impl)
    for old, new in zip(before, tensors(result)[:-1], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    matrices = [layer.probabilities() for layer in layers]
    # A sum of four numbers: the errors of four.
    np.testing.assert_allclose(result.total, matrices[0].sum(1), atol=4e-6)
    fill(kernel, layers[1], part._replace(first=False), result, impl)
    assert_is(result, truth.columns(matrices, over_heads="sum", over_layers="max"), 4e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [("float32", 0), ("float32", 5)])
def test_whatever_the_neighbours(encoding, top_k, kernel, impl):
    layer = make_layer(3, 4, 2, queries(kernel), 37, 16)
    three = poisoned(3, layer.query.shape[2], 37, 4, encoding=encoding, top_k=top_k)
    fill(kernel, layer, LayerSpec(), three, impl)
    layer.query, layer.key, layer.value = layer.query[1:2], layer.key[1:2], layer.value[1:2]
    alone = poisoned(1, layer.query.shape[2], 37, 4, encoding=encoding, top_k=top_k)
    fill(kernel, layer, LayerSpec(), alone, impl)
    for ours, theirs in zip(tensors(alone), tensors(three), strict=True):
        # torch may multiply batches of another size in another order: the last bit of a sum.
        np.testing.assert_allclose(ours[0].double(), theirs[1].double(), atol=1e-7, rtol=0)
