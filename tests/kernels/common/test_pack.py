"""Encoded rows of every kernel and reference, to the byte: rounding, ties, and what must stay unchanged."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import IMPLS, assert_is, make_layer, poisoned
from sidelight.kernels import LayerSpec, decode, layout_into, rows

QUICK = ["rows", "decode"]
KERNELS = [*QUICK, "layout"]  # the top-k of layout is slow in Triton's interpreter
PACKINGS = [("uint8", 0), ("uint8", 5), ("uint8", 40)]  # all positions, selected ones, sorted ones


def fill(kernel, layer, spec, result, impl):
    if kernel == "rows":
        rows(layer.query, layer.key, layer.params, result, spec, impl=impl)
    elif kernel == "decode":
        decode(layer.query, layer.key, layer.value, layer.params, result, spec, impl=impl)
    else:
        matrix = torch.from_numpy(layer.probabilities()).float()
        layout_into([matrix], result, over_heads=spec.over_heads, impl=impl)


def queries(kernel, count=5):
    return 1 if kernel == "decode" else count


def tensors(result):
    return [tensor for tensor in result[:4] if tensor is not None]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("top_k", [0, 7, 40])
def test_bytes_are_rounded_half_up(top_k, impl):
    """The greatest number is 255/256, and a step is 1/256: half steps are exact, and half to even would show."""
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
def test_bytes_against_float64(kernel, impl):
    layer = make_layer(2, 4, 2, queries(kernel, 19), 70, 16)
    for spec, options in ((LayerSpec(), {}), (LayerSpec(over_heads="max"), {"over_heads": "max"})):
        numbers = truth.columns([layer.probabilities()], **options)
        result = poisoned(2, numbers.shape[1], 70, numbers.shape[3], encoding="uint8")
        fill(kernel, layer, spec, result, impl)
        scale = numbers.max(2, keepdims=True) / 255
        np.testing.assert_allclose(result.scales[:, :, None], scale, rtol=5e-6)
        steps = numbers / scale + 0.5
        # A number halfway between two bytes, up to the precision of float32, may become either.
        certain = np.abs(steps - np.round(steps)) > 2e-3
        certain |= numbers == numbers.max(2, keepdims=True)
        assert certain.mean() > 0.98
        assert (result.values.numpy() == np.floor(steps + 1e-9))[certain].all()


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("top_k", [1, 5, 32, 33, 200])
@pytest.mark.parametrize("visible", [None, 50])
def test_of_equal_numbers_the_first_are_selected(visible, top_k, kernel, impl):
    """All numbers are equal; or one is greater, and the others are hidden, equal zeros."""
    mask = (
        torch.ones(1, 1, 1, 100, dtype=torch.bool)
        if visible is None
        else torch.arange(100).eq(visible).view(1, 1, 1, 100)
    )
    layer = make_layer(1, 2, 1, queries(kernel, 2), 100, 16, mask=mask)
    layer.query.zero_()
    order = list(range(100))
    if visible is not None:
        order.insert(0, order.pop(visible))
    result = poisoned(1, layer.query.shape[2], 100, 1, encoding="uint8", top_k=top_k)
    fill(kernel, layer, LayerSpec(over_heads="min"), result, impl)
    expected = torch.tensor(order[:top_k], dtype=torch.int32)[:, None].expand(result.positions.shape)
    assert torch.equal(result.positions, expected)
    assert torch.equal(
        result.values == 255, torch.ones_like(expected).bool() if visible is None else expected == visible
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
def test_selection_and_sorting_agree(kernel, impl):
    """The kernel selects up to 32 positions; more are sorted."""
    layer = make_layer(1, 2, 1, queries(kernel), 70, 16)
    selected, ordered = (poisoned(1, layer.query.shape[2], 70, 2, top_k=k) for k in (32, 33))
    for result in (selected, ordered):
        fill(kernel, layer, LayerSpec(), result, impl)
    assert torch.equal(selected.positions, ordered.positions[:, :, :32])
    np.testing.assert_allclose(selected.values, ordered.values[:, :, :32], atol=1e-7)


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float16", 0), ("float32", 5)])
def test_every_number_is_written(encoding, top_k, kernel, impl):
    """Bytes and positions cannot be NaN: numbers that stay unwritten differ after two fills. And runs are equal."""
    layer = make_layer(1, 3, 3, queries(kernel), 37, 16)
    for spec, columns in ((LayerSpec(), 3), (LayerSpec(over_heads="mean"), 1)):
        runs = []
        for number in (0x55, 0x2A):
            result = poisoned(1, layer.query.shape[2], 37, columns, encoding=encoding, top_k=top_k)
            for tensor in tensors(result):
                tensor.fill_(number)
            fill(kernel, layer, spec, result, impl)
            runs.append(tensors(result))
        assert all(map(torch.equal, *runs))


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float32", 0)])
def test_other_columns_stay_unchanged(encoding, top_k, kernel, impl):
    layer = make_layer(1, 4, 2, queries(kernel), 37, 16)
    expected = truth.columns([layer.probabilities()])
    for spec, columns, numbers in (
        (LayerSpec(heads=(2, 1), column=1), [1, 2], expected[..., [2, 1]]),
        (LayerSpec(heads=(3, 0), columns=(4, 2)), [4, 2], expected[..., [3, 0]]),
        (LayerSpec(over_heads="max", column=3), [3], expected.max(3, keepdims=True)),
    ):
        result = poisoned(1, layer.query.shape[2], 37, 6, encoding=encoding, top_k=top_k)
        before = [tensor.clone() for tensor in tensors(result)]
        fill(kernel, layer, spec, result, impl)
        others = [column for column in range(6) if column not in columns]
        for old, new in zip(before, tensors(result), strict=True):
            torch.testing.assert_close(new[..., others], old[..., others], rtol=0, atol=0, equal_nan=True)
        values, scales, positions = (None if tensor is None else tensor[..., columns] for tensor in result[:3])
        assert_is(result._replace(values=values, scales=scales, positions=positions), numbers, 2e-6)


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [*PACKINGS, ("float32", 0)])
def test_before_the_last_layer_only_the_accumulator_is_written(encoding, top_k, kernel, impl):
    layers = [make_layer(2, 4, 2, queries(kernel), 37, 16, seed=seed) for seed in range(2)]
    result = poisoned(2, layers[0].query.shape[2], 37, 1, encoding=encoding, top_k=top_k, pools_layers=True)
    before = [tensor.clone() for tensor in tensors(result)[:-1]]
    spec = LayerSpec(over_heads="sum", over_layers="max", num_layers=2)
    fill(kernel, layers[0], spec._replace(is_last=False), result, impl)
    for old, new in zip(before, tensors(result)[:-1], strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=0, equal_nan=True)
    matrices = [layer.probabilities() for layer in layers]
    # A sum of four numbers has the errors of four.
    np.testing.assert_allclose(result.accumulator, matrices[0].sum(1), atol=4e-6)
    fill(kernel, layers[1], spec._replace(is_first=False), result, impl)
    assert_is(result, truth.columns(matrices, over_heads="sum", over_layers="max"), 4e-6)


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kernel", QUICK)
@pytest.mark.parametrize(("encoding", "top_k"), [("float32", 0), ("float32", 5)])
def test_independent_of_neighbours(encoding, top_k, kernel, impl):
    layer = make_layer(3, 4, 2, queries(kernel), 37, 16)
    three = poisoned(3, layer.query.shape[2], 37, 4, encoding=encoding, top_k=top_k)
    fill(kernel, layer, LayerSpec(), three, impl)
    layer.query, layer.key, layer.value = layer.query[1:2], layer.key[1:2], layer.value[1:2]
    alone = poisoned(1, layer.query.shape[2], 37, 4, encoding=encoding, top_k=top_k)
    fill(kernel, layer, LayerSpec(), alone, impl)
    for ours, theirs in zip(tensors(alone), tensors(three), strict=True):
        # torch may add in another order for a batch of another size: the last bit of a sum.
        np.testing.assert_allclose(ours[0].double(), theirs[1].double(), atol=1e-7, rtol=0)
