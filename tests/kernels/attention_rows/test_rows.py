"""`rows`, Triton and reference, against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import (
    DTYPES,
    ENCODINGS,
    IMPLS,
    REDUCTIONS,
    TOLERANCE,
    assert_is,
    draw_options,
    draw_specs,
    make_layer,
    poisoned,
    select_columns,
    tolerance_for,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels import AttentionParams, LayerSpec, capped_attention, layout_into, new_attention_tensors, rows
from sidelight.kernels.common import triton_output
from sidelight.kernels.common.attention_tensors import device_constant
from torch.utils._python_dispatch import TorchDispatchMode

# Batch, heads, key heads, queries, keys, width.
SHAPES = [
    (1, 1, 1, 1, 1, 8),
    (2, 3, 1, 1, 37, 16),
    (1, 4, 4, 37, 1, 32),
    (1, 6, 2, 33, 65, 40),
    (1, 2, 1, 70, 131, 64),
    (1, 5, 5, 64, 64, 80),
    (1, 2, 1, 17, 40, 128),
    (1, 2, 2, 9, 50, 256),
]


def run(layers, specs, queries, length, columns, impl, **options):
    """Writes all layers, and returns the tensors."""
    batch = layers[0].query.shape[0]
    out = poisoned(batch, queries, length, columns, pools_layers=specs[0].pools_layers, **options)
    for layer, spec in zip(layers, specs, strict=True):
        rows(layer.query, layer.key, layer.params, out, spec, impl=impl)
    return out


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape, dtype, impl):
    _, heads, _, queries, keys, _ = shape
    # The last query sees all keys; where there are more queries than keys, the first see none.
    layer = make_layer(*shape, dtype, causal=True, first_position=keys - queries)
    expected = truth.columns([layer.probabilities()])
    apart = run([layer], [LayerSpec()], queries, keys, heads, impl)
    assert_is(apart, expected, TOLERANCE)
    np.testing.assert_allclose(apart.values.sum(2), expected.any(2), atol=1e-5)
    # The first query sees one key.
    layer.options["first_position"] = 0
    mean = run([layer], [LayerSpec(over_heads="mean")], queries, keys, 1, impl)
    assert_is(mean, truth.columns([layer.probabilities()], over_heads="mean"), TOLERANCE)


@pytest.mark.covering(1)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_sum_to_one_however_large_the_scores(dtype, impl):
    # With top-k the smallest shape of several tiles: top-k is slow in the interpreter.
    for queries, keys, options in ((33, 150, {}), (17, 70, {"top_k": 32})):
        layer = make_layer(1, 2, 1, queries, keys, 64)
        layer.query, layer.key = (layer.query * 300).to(dtype), layer.key.to(dtype)
        layer.options["mask"] = torch.rand(1, 1, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.8
        result = run([layer], [LayerSpec()], queries, keys, 2, impl, **options)
        np.testing.assert_allclose(result.values.sum(2), np.ones((1, queries, 2)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_of_the_smallest_number_everywhere_hides_nothing(dtype, impl):
    """The number is finite: all scores change alike, so no probability changes."""
    layer = make_layer(1, 2, 2, 3, 45, 16, mask=torch.full((1, 1, 3, 45), torch.finfo(dtype).min, dtype=dtype))
    sums = run([layer], [LayerSpec()], 3, 45, 2, impl).values.sum(2)
    np.testing.assert_allclose(sums, np.ones((1, 3, 2)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction(reduction, impl):
    layers = [make_layer(1, 6, 2, 19, 35, 16, seed=seed) for seed in range(3)]
    expected = [layer.probabilities() for layer in layers]
    spec = LayerSpec(over_heads=reduction, over_layers=reduction, num_layers=3)
    specs = [spec._replace(is_first=i == 0, is_last=i == 2) for i in range(3)]
    result = run(layers, specs, 19, 35, 1, impl)
    # The error of a sum of 18 numbers is proportional to the sum.
    assert_is(result, truth.columns(expected, over_heads=reduction, over_layers=reduction), 5e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_grouped_heads_share_the_right_key_head(impl):
    """Heads 0 and 1 use key head 0, heads 2 and 3 use key head 1; and a sum over heads is no mean."""
    layer = make_layer(1, 4, 2, 5, 33, 16)
    layer.query[:, 1:] = layer.query[:, :1]  # one query for all: only the key heads differ
    expected = layer.probabilities()
    assert not np.allclose(expected[:, 1], expected[:, 2])
    np.testing.assert_allclose(expected[:, 0], expected[:, 1])
    result = run([layer], [LayerSpec()], 5, 33, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    for reduction, factor in (("sum", 4), ("mean", 1)):
        reduced = run([layer], [LayerSpec(over_heads=reduction)], 5, 33, 1, impl)
        np.testing.assert_allclose(reduced.values.sum(2), factor * np.ones((1, 5, 1)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_without_visible_keys_are_zeros(impl):
    mask = torch.rand(2, 1, 7, 40) < 0.5
    mask[0, :, 3] = mask[1] = False
    layer = make_layer(2, 2, 2, 7, 40, 16, mask=mask)
    for spec, columns in ((LayerSpec(), 2), (LayerSpec(over_heads="max"), 1)):
        for options in ({}, {"encoding": "uint8"}, {"top_k": 4}):
            result = run([layer], [spec], 7, 40, columns, impl, **options)
            assert (result.values[0, 3] == 0).all()
            assert (result.values[1] == 0).all()
            assert (result.values[0, 2].sum(0) > 0).all()
            assert result.scales is None or (result.scales[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_a_bias_can_hide_all(impl):
    bias = torch.zeros(1, 1, 3, 20)
    bias[:, :, 1] = float("-inf")
    result = run([make_layer(1, 2, 2, 3, 20, 16, bias=bias)], [LayerSpec()], 3, 20, 2, impl)
    np.testing.assert_allclose(result.values.sum(2)[0], [[1, 1], [0, 0], [1, 1]], atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_before_the_keys_are_zeros(impl):
    layer = make_layer(1, 4, 2, 3, 20, 16)
    expected = truth.columns([layer.probabilities()], length=33)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl), expected, 1e-6)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl, encoding="uint8"), expected, 1e-6)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl, top_k=30), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_heads_in_given_columns(impl):
    layers = [make_layer(1, 4, 2, 6, 21, 16, seed=seed) for seed in range(2)]
    specs = [LayerSpec(heads=(3, 0), columns=(2, 0)), LayerSpec(heads=(1,), columns=(1,))]
    first, second = (truth.columns([layer.probabilities()]) for layer in layers)
    expected = np.stack([first[..., 0], second[..., 1], first[..., 3]], -1)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        assert_is(run(layers, specs, 6, 21, 3, impl, **options), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_heads_in_given_columns(impl):
    layer = make_layer(1, 4, 2, 6, 21, 16)
    order = (2, 7, 0, 5)
    expected = truth.columns([layer.probabilities()])
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        result = poisoned(1, 6, 21, 8, **options)
        rows(layer.query, layer.key, layer.params, result, LayerSpec(columns=order), impl=impl)
        assert_is(select_columns(result, order), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("first_position", [-50, -3, 0, 8, 44, 200])
def test_causality(first_position, impl):
    """From before the first key to after the last: rows that see no key, some keys and all keys."""
    layer = make_layer(1, 4, 2, 37, 45, 16, causal=True, first_position=first_position)
    expected = layer.probabilities()
    result = run([layer], [LayerSpec()], 37, 45, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    np.testing.assert_allclose(result.values.sum(2), expected.sum(3).transpose(0, 2, 1), atol=1e-5)


@pytest.mark.covering(1)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype, impl):
    """Queries, keys, biases and masks of any strides; biases and masks may be halves, or expanded."""
    random = torch.Generator().manual_seed(0)
    layer = make_layer(2, 4, 2, 19, 40, 24)
    layer.query = torch.randn(2, 4, 24, 19, generator=random).transpose(2, 3)
    layer.key = torch.randn(40, 2, 2, 48, generator=random).permute(2, 1, 0, 3)[..., ::2]
    bias = torch.randn(2, 4, 40, 19, generator=random).to(dtype).transpose(2, 3)
    hidden = torch.rand(40, 19, 4, 2, generator=random).permute(3, 2, 1, 0) < 0.4
    for mask in (
        ~hidden,
        torch.zeros(hidden.shape).masked_fill(hidden, -3.0).to(dtype),
        ~hidden[:1, :1].expand(2, 4, 19, 40),
    ):
        layer.options |= {"bias": bias, "mask": mask, "softcap": 3.0}
        assert_is(run([layer], [LayerSpec()], 19, 40, 4, impl), truth.columns([layer.probabilities()]), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_cached_weight_is_no_head(impl):
    """Device constants are cached by their numbers, and 1.0 equals 1."""
    layer = make_layer(1, 2, 2, 3, 9, 16)
    expected = truth.columns([layer.probabilities()])
    device_constant.cache_clear()
    weighted = LayerSpec(heads=(0,), over_heads="sum", weights=(1.0,))
    assert_is(run([layer], [weighted], 3, 9, 1, impl), expected[..., :1], TOLERANCE)
    assert_is(run([layer], [LayerSpec(heads=(1,))], 3, 9, 1, impl), expected[..., 1:], TOLERANCE)
    weighted = LayerSpec(over_heads="sum", weights=(1, 0.5))
    assert_is(run([layer], [weighted], 3, 9, 1, impl), expected @ np.array([[1.0], [0.5]]), 2 * TOLERANCE)


@pytest.mark.slow
@settings(deadline=None, max_examples=25, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1), (8, 2)]))
    batch, queries = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 16, 31, 32, 33, 70]))
    keys = data.draw(st.sampled_from([1, 3, 32, 33, 64, 100, 150]))
    width = data.draw(st.sampled_from([8, 32, 40, 64, 80]))
    dtype = data.draw(st.sampled_from(DTYPES))
    specs, truth_options, columns = data.draw(draw_specs(heads))
    layers = [
        make_layer(
            batch,
            heads,
            key_heads,
            queries,
            keys,
            width,
            dtype,
            i,
            **data.draw(draw_options(heads, queries, keys, batch)),
        )
        for i in range(len(specs))
    ]
    length = keys + data.draw(st.sampled_from([0, 0, 5]))
    encoding, top_k = data.draw(ENCODINGS)
    expected = truth.columns([layer.probabilities() for layer in layers], length=length, **truth_options)
    for impl in IMPLS:
        result = run(layers, specs, queries, length, columns, impl, encoding=encoding, top_k=top_k)
        assert_is(result, expected, tolerance_for(expected, truth_options, len(specs)))


def test_deterministic_and_independent_of_neighbours():
    layer = make_layer(3, 2, 1, 36, 66, 16, causal=True, first_position=30)
    spec = LayerSpec(over_heads="mean")
    first, second = (run([layer], [spec], 36, 66, 1, "triton") for _ in range(2))
    assert torch.equal(first.values, second.values)
    alone = make_layer(3, 2, 1, 36, 66, 16, causal=True, first_position=30)
    alone.query, alone.key = alone.query[1:2], alone.key[1:2]
    assert torch.equal(run([alone], [spec], 36, 66, 1, "triton").values[0], first.values[1])


def test_memory_is_bounded(monkeypatch):
    """The reference never computes more than the scores of a tile."""
    from sidelight.kernels.attention_rows import reference
    from sidelight.kernels.common import attention_reference

    monkeypatch.setattr(attention_reference, "_TILE_BYTES", 4 * 8 * 512 * 16)
    tiles = []
    probabilities = attention_reference.probabilities

    def recording(*args):
        tiles.append(probabilities(*args))
        return tiles[-1]

    monkeypatch.setattr(reference, "probabilities", recording)
    layer = make_layer(1, 8, 8, 512, 512, 16, causal=True)
    result = run([layer], [LayerSpec(over_heads="mean")], 512, 512, 1, "reference")
    assert len(tiles) == 32
    assert max(tensor.numel() for tensor in tiles) <= 8 * 512 * 16
    assert_is(result, truth.columns([layer.probabilities()], over_heads="mean"), 1e-6)


class LargestTensor(TorchDispatchMode):
    """Measures the bytes of the largest tensor that torch allocates."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.bytes = max(self.bytes, tensor.nbytes)
        return results


@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_many_positions_are_sorted_in_slices_of_queries(encoding, monkeypatch):
    """Masks, biases, causality and the layers before must be sliced with the queries."""
    specs = [
        LayerSpec(over_heads="l2", over_layers="max", is_first=True, is_last=False),
        LayerSpec(over_heads="l2", over_layers="max", is_first=False),
    ]
    random = torch.Generator().manual_seed(0)
    bias = torch.randn(1, 2, 8, 70, generator=random)
    mask = torch.rand(2, 1, 8, 70, generator=random) < 0.7
    for options in ({"bias": bias, "mask": mask}, {"causal": True, "first_position": 40, "bias": bias[:, :1]}):
        layers = [make_layer(2, 2, 1, 8, 70, 16, seed=seed, **options) for seed in range(2)]
        expected = truth.columns([layer.probabilities() for layer in layers], over_heads="l2", over_layers="max")
        apart = truth.columns([layers[0].probabilities()])
        with monkeypatch.context() as patch:
            patch.setattr(triton_output, "_FLOAT_BYTES", 4 * 2 * 70 * 2 * 5)  # five queries of two heads
            reduced = run(layers, specs, 8, 70, 1, "triton", encoding=encoding, top_k=60)
            assert_is(reduced, expected, 4e-6)
            assert_is(run(layers[:1], [LayerSpec()], 8, 70, 2, "triton", encoding=encoding, top_k=60), apart, 1e-6)


def test_sorting_never_holds_all_rows(monkeypatch):
    monkeypatch.setattr(triton_output, "_FLOAT_BYTES", 4 * 300 * 8)
    layer = make_layer(1, 2, 2, 10, 300, 16)
    result = poisoned(1, 10, 300, 2, top_k=33)
    with LargestTensor() as largest:
        rows(layer.query, layer.key, layer.params, result, impl="triton")
    assert_is(result, truth.columns([layer.probabilities()]), 1e-6)
    assert largest.bytes <= 8 * 300 * 8  # the indices of a slice, int64
    layers = [torch.rand(1, 2, 10, 300) for _ in range(2)]
    result = poisoned(1, 10, 300, 4, top_k=33)
    with LargestTensor() as largest:
        layout_into(layers, result, impl="triton")
    assert_is(result, truth.columns([layer.double().numpy() for layer in layers]), 2e-6)
    assert largest.bytes <= 8 * 300 * 8


@pytest.mark.parametrize("impl", IMPLS)
def test_a_pooled_mean_of_one_layer_needs_no_divisor(impl):
    layer = make_layer(1, 4, 2, 3, 9, 16)
    spec = LayerSpec(over_heads="mean", over_layers="mean", pools_all_heads=True)
    expected = truth.columns([layer.probabilities()], over_heads="mean")
    assert_is(run([layer], [spec], 3, 9, 1, impl), expected, TOLERANCE)


def test_capped_attention_takes_values_of_another_width():
    layer = make_layer(2, 4, 2, 5, 9, 16, softcap=2.0)
    value = torch.randn(2, 2, 9, 7)
    output = capped_attention(layer.query, layer.key, value, layer.params)
    assert output.shape == (2, 4, 5, 7)
    np.testing.assert_allclose(output, truth.output(layer.probabilities(), value.double().numpy()), atol=2e-6)


BAD = [
    ("query", {"query": torch.zeros(1, 4, 3)}),
    ("query", {"query": torch.zeros(1, 4, 3, 8, dtype=torch.float64)}),
    ("key", {"key": torch.zeros(1, 3, 5, 8)}),
    ("key", {"key": torch.zeros(1, 2, 5, 16)}),
    ("key", {"key": torch.zeros(2, 2, 5, 8)}),
    ("params.mask", {"params": AttentionParams(1.0, mask=torch.ones(1, 1, 3, 4, dtype=torch.bool))}),
    ("params.mask", {"params": AttentionParams(1.0, mask=torch.ones(3, 5, dtype=torch.bool))}),
    ("params.bias", {"params": AttentionParams(1.0, bias=torch.ones(1, 3, 3, 5))}),
    ("params.bias", {"params": AttentionParams(1.0, bias=torch.ones(1, 1, 3, 5, dtype=torch.bool))}),
    ("params.softcap", {"params": AttentionParams(1.0, softcap=0.0)}),
    ("spec.heads", {"spec": LayerSpec(heads=(4,))}),
    ("spec.heads", {"spec": LayerSpec(heads=())}),
    ("spec.column", {"spec": LayerSpec(column=1)}),
    ("spec.column", {"spec": LayerSpec(column=-1)}),
    ("spec.column", {"spec": LayerSpec(over_heads="sum", column=-1)}),
    ("spec.column", {"spec": LayerSpec(over_heads="sum", column=4)}),
    ("spec.columns", {"spec": LayerSpec(columns=(0, 1, 2, 4))}),
    ("spec.columns", {"spec": LayerSpec(columns=(0, 1, 2, -1))}),
    ("spec.columns", {"spec": LayerSpec(heads=(1, 2), columns=(0, 0))}),
    ("spec.columns", {"spec": LayerSpec(heads=(1, 2), columns=(0,))}),
    ("spec.over_heads", {"spec": LayerSpec(over_heads="median")}),
    ("spec.over_layers", {"spec": LayerSpec(over_layers="sum")}),
    ("spec.over_layers", {"spec": LayerSpec(over_heads="sum", over_layers="sum")}),
    ("spec.weights", {"spec": LayerSpec(over_heads="max", weights=(1.0,) * 4)}),
    ("spec.weights", {"spec": LayerSpec(over_heads="mean", weights=(1.0,) * 3)}),
    ("spec.weights", {"spec": LayerSpec(over_heads="mean", weights=(1.0, 1.0, 1.0, -1.0))}),
    ("spec.weights", {"spec": LayerSpec(over_heads="mean", weights=(0.0,) * 4)}),
    ("spec.divisor", {"spec": LayerSpec(over_heads="mean", divisor=0.0)}),
    ("spec.pools_all_heads", {"spec": LayerSpec(over_heads="mean", over_layers="max", pools_all_heads=True)}),
    ("out", {"out": new_attention_tensors(1, 2, 5, 4)}),
    ("out", {"out": new_attention_tensors(1, 3, 4, 4)}),
    ("impl", {"impl": "cuda"}),
]


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name} {i}" for i, (name, _) in enumerate(BAD)])
def test_errors_name_the_argument(name, change):
    arguments = {"query": torch.zeros(1, 4, 3, 8), "key": torch.zeros(1, 2, 5, 8), "params": AttentionParams(1.0)}
    arguments |= {"out": new_attention_tensors(1, 3, 5, 4), "spec": LayerSpec()} | change
    with pytest.raises(ValueError, match=rf"^{name}:"):
        rows(**arguments)


def test_a_pooled_mean_of_several_layers_needs_its_divisor():
    spec = LayerSpec(over_heads="mean", over_layers="mean", pools_all_heads=True, is_last=False)
    result = new_attention_tensors(1, 3, 5, 1, pools_layers=True)
    with pytest.raises(ValueError, match=r"^spec\.divisor:"):
        rows(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8), AttentionParams(1.0), result, spec)


def test_new_attention_tensors_names_the_argument():
    with pytest.raises(ValueError, match=r"^encoding:"):
        new_attention_tensors(1, 1, 1, 1, encoding="int4")
    with pytest.raises(ValueError, match=r"^top_k:"):
        new_attention_tensors(1, 1, 1, 1, top_k=-1)
