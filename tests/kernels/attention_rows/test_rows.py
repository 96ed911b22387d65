"""`rows`, kernel and reference, against float64."""

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
    make_layer,
    parts,
    picked,
    poisoned,
    rules,
    tolerance_of,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels import AttentionParams, LayerSpec, capped_attention, layout_into, new_attention_tensors, rows
from sidelight.kernels.common import triton_output as selection
from sidelight.kernels.common.attention_tensors import constant
from torch.utils._python_dispatch import TorchDispatchMode

# Batch, heads, key heads, queries, keys, width.
SHAPES = [
    (1, 1, 1, 1, 1, 8),
    (2, 3, 1, 1, 37, 16),
    (1, 4, 4, 37, 1, 32),
    (2, 6, 2, 33, 65, 40),
    (1, 4, 2, 70, 131, 64),
    (1, 5, 5, 64, 64, 80),
    (1, 2, 1, 17, 40, 128),
    (1, 2, 2, 9, 50, 256),
]


def run(layers, made, queries, length, columns, impl, **options):
    batch = layers[0].query.shape[0]
    result = poisoned(batch, queries, length, columns, pools_layers=made[0].pools_layers, **options)
    for layer, part in zip(layers, made, strict=True):
        rows(layer.query, layer.key, layer.scoring, result, part, impl=impl)
    return result


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_that_hurt(shape, dtype, impl):
    _, heads, _, queries, keys, _ = shape
    # The last query sees all keys; where there are more queries than keys, the first see none.
    layer = make_layer(*shape, dtype, causal=True, first=keys - queries)
    expected = truth.columns([layer.probabilities()])
    apart = run([layer], [LayerSpec()], queries, keys, heads, impl)
    assert_is(apart, expected, TOLERANCE)
    np.testing.assert_allclose(apart.values.sum(2), expected.any(2), atol=1e-5)
    # The first query sees one key.
    layer.rule["first"] = 0
    mean = run([layer], [LayerSpec(over_heads="mean")], queries, keys, 1, impl)
    assert_is(mean, truth.columns([layer.probabilities()], over_heads="mean"), TOLERANCE)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_sum_to_one_however_large_the_scores(dtype, impl):
    # With top-k, the smallest of several tiles: the interpreter is slow to pick.
    for queries, keys, options in ((33, 150, {}), (17, 70, {"top_k": 32})):
        layer = make_layer(1, 4, 2, queries, keys, 64)
        layer.query, layer.key = (layer.query * 300).to(dtype), layer.key.to(dtype)
        layer.rule["mask"] = torch.rand(1, 1, queries, keys, generator=torch.Generator().manual_seed(0)) < 0.8
        result = run([layer], [LayerSpec()], queries, keys, 4, impl, **options)
        np.testing.assert_allclose(result.values.sum(2), np.ones((1, queries, 4)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_of_the_least_number_throughout_hides_nothing(dtype, impl):
    """It is finite: it leaves every score the same, and so every probability."""
    layer = make_layer(1, 2, 2, 3, 45, 16, mask=torch.full((1, 1, 3, 45), torch.finfo(dtype).min, dtype=dtype))
    sums = run([layer], [LayerSpec()], 3, 45, 2, impl).values.sum(2)
    np.testing.assert_allclose(sums, np.ones((1, 3, 2)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction(reduction, impl):
    layers = [make_layer(1, 6, 2, 19, 35, 16, seed=seed) for seed in range(3)]
    expected = [layer.probabilities() for layer in layers]
    part = LayerSpec(over_heads=reduction, over_layers=reduction, layer_count=3)
    folded = [part._replace(first=i == 0, last=i == 2) for i in range(3)]
    result = run(layers, folded, 19, 35, 1, impl)
    # A sum of 18 numbers: of the size of their sum.
    assert_is(result, truth.columns(expected, over_heads=reduction, over_layers=reduction), 5e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_grouped_heads_share_the_right_key_head(impl):
    """Heads 0 and 1 use key head 0, 2 and 3 key head 1; and a sum over them is no mean."""
    layer = make_layer(1, 4, 2, 5, 33, 16)
    layer.query[:, 1:] = layer.query[:, :1]  # one query for all: only the key heads differ
    expected = layer.probabilities()
    assert not np.allclose(expected[:, 1], expected[:, 2])
    np.testing.assert_allclose(expected[:, 0], expected[:, 1])
    result = run([layer], [LayerSpec()], 5, 33, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    for reduction, factor in (("sum", 4), ("mean", 1)):
        folded = run([layer], [LayerSpec(over_heads=reduction)], 5, 33, 1, impl)
        np.testing.assert_allclose(folded.values.sum(2), factor * np.ones((1, 5, 1)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_that_see_nothing_are_zeros(impl):
    mask = torch.rand(2, 1, 7, 40) < 0.5
    mask[0, :, 3] = False
    mask[1] = False
    layer = make_layer(2, 4, 4, 7, 40, 16, mask=mask)
    for part, columns in ((LayerSpec(), 4), (LayerSpec(over_heads="max"), 1)):
        for options in ({}, {"encoding": "uint8"}, {"top_k": 4}):
            result = run([layer], [part], 7, 40, columns, impl, **options)
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
def test_positions_that_a_window_has_forgotten_are_zeros(impl):
    layer = make_layer(1, 4, 2, 3, 20, 16)
    expected = truth.columns([layer.probabilities()], length=33)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl), expected, 1e-6)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl, encoding="uint8"), expected, 1e-6)
    assert_is(run([layer], [LayerSpec()], 3, 33, 4, impl, top_k=30), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_pairs_go_where_they_are_told(impl):
    layers = [make_layer(1, 4, 2, 6, 21, 16, seed=seed) for seed in range(2)]
    made = [LayerSpec(heads=(3, 0), columns=(2, 0)), LayerSpec(heads=(1,), columns=(1,))]
    first, second = (truth.columns([layer.probabilities()]) for layer in layers)
    expected = np.stack([first[..., 0], second[..., 1], first[..., 3]], -1)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        assert_is(run(layers, made, 6, 21, 3, impl, **options), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_heads_out_of_order(impl):
    layer = make_layer(1, 4, 2, 6, 21, 16)
    order = (2, 7, 0, 5)
    expected = truth.columns([layer.probabilities()])
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        result = poisoned(1, 6, 21, 8, **options)
        rows(layer.query, layer.key, layer.scoring, result, LayerSpec(columns=order), impl=impl)
        assert_is(picked(result, order), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("first", "window"), [(0, None), (8, None), (-3, None), (0, 1), (-3, 7), (8, 40), (44, 7), (60, 7), (200, 7)]
)
def test_causality_and_windows(first, window, impl):
    """From before the first key to behind the last: rows that see nothing, some and all."""
    layer = make_layer(1, 4, 2, 37, 45, 16, causal=True, first=first, window=window)
    expected = layer.probabilities()
    result = run([layer], [LayerSpec()], 37, 45, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    np.testing.assert_allclose(result.values.sum(2), expected.sum(3).transpose(0, 2, 1), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype, impl):
    """Of queries, keys, biases and masks, which may be halves though the rest is not; and what is shared."""
    random = torch.Generator().manual_seed(0)
    layer = make_layer(2, 6, 3, 19, 70, 24)
    layer.query = torch.randn(2, 6, 24, 19, generator=random).transpose(2, 3)
    layer.key = torch.randn(70, 3, 2, 48, generator=random).permute(2, 1, 0, 3)[..., ::2]
    bias = torch.randn(2, 6, 70, 19, generator=random).to(dtype).transpose(2, 3)
    hidden = torch.rand(70, 19, 6, 2, generator=random).permute(3, 2, 1, 0) < 0.4
    for mask in (
        ~hidden,
        torch.zeros(hidden.shape).masked_fill(hidden, -3.0).to(dtype),
        ~hidden[:1, :1].expand(2, 6, 19, 70),
    ):
        layer.rule |= {"bias": bias, "mask": mask, "softcap": 3.0}
        assert_is(run([layer], [LayerSpec()], 19, 70, 6, impl), truth.columns([layer.probabilities()]), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_weight_is_no_head(impl):
    """Numbers are kept on the device by what they are, and 1.0 is equal to 1."""
    layer = make_layer(1, 2, 2, 3, 9, 16)
    expected = truth.columns([layer.probabilities()])
    constant.cache_clear()
    weighted = LayerSpec(heads=(0,), over_heads="sum", weights=(1.0,))
    assert_is(run([layer], [weighted], 3, 9, 1, impl), expected[..., :1], TOLERANCE)
    assert_is(run([layer], [LayerSpec(heads=(1,))], 3, 9, 1, impl), expected[..., 1:], TOLERANCE)
    weighted = LayerSpec(over_heads="sum", weights=(1, 0.5))
    assert_is(run([layer], [weighted], 3, 9, 1, impl), expected @ np.array([[1.0], [0.5]]), 2 * TOLERANCE)


@settings(deadline=None, max_examples=25, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1), (8, 2)]))
    batch, queries = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 16, 31, 32, 33, 70]))
    keys = data.draw(st.sampled_from([1, 3, 32, 33, 64, 100, 150]))
    width = data.draw(st.sampled_from([8, 32, 40, 64, 80]))
    dtype = data.draw(st.sampled_from(DTYPES))
    made, how, columns = data.draw(parts(heads))
    layers = [
        make_layer(
            batch, heads, key_heads, queries, keys, width, dtype, i, **data.draw(rules(heads, queries, keys, batch))
        )
        for i in range(len(made))
    ]
    length = keys + data.draw(st.sampled_from([0, 0, 5]))
    encoding, top_k = data.draw(ENCODINGS)
    expected = truth.columns([layer.probabilities() for layer in layers], length=length, **how)
    for impl in IMPLS:
        result = run(layers, made, queries, length, columns, impl, encoding=encoding, top_k=top_k)
        assert_is(result, expected, tolerance_of(expected, how, len(made)))


def test_the_same_numbers_every_time_and_whatever_the_neighbours():
    layer = make_layer(3, 4, 2, 40, 70, 16, causal=True, first=30)
    part = LayerSpec(over_heads="mean")
    once, twice = (run([layer], [part], 40, 70, 1, "triton") for _ in range(2))
    assert torch.equal(once.values, twice.values)
    alone = make_layer(3, 4, 2, 40, 70, 16, causal=True, first=30)
    alone.query, alone.key = alone.query[1:2], alone.key[1:2]
    assert torch.equal(run([alone], [part], 40, 70, 1, "triton").values[0], once.values[1])


def test_memory_is_bounded(monkeypatch):
    """The scores of a tile are all that is ever made."""
    from sidelight.kernels.attention_rows import reference as rows_reference
    from sidelight.kernels.common import attention_reference

    monkeypatch.setattr(attention_reference, "_TILE_BYTES", 4 * 8 * 512 * 16)
    made = []
    probabilities = attention_reference.probabilities

    def watched(*args):
        made.append(probabilities(*args))
        return made[-1]

    monkeypatch.setattr(rows_reference, "probabilities", watched)
    layer = make_layer(1, 8, 8, 512, 512, 16, causal=True)
    result = run([layer], [LayerSpec(over_heads="mean")], 512, 512, 1, "reference")
    assert len(made) == 32
    assert max(tensor.numel() for tensor in made) <= 8 * 512 * 16
    assert_is(result, truth.columns([layer.probabilities()], over_heads="mean"), 1e-6)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, tensor.nbytes)
        return made


@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_many_positions_are_sorted_some_queries_at_a_time(encoding, monkeypatch):
    """Whatever cuts queries short must be cut with them: masks, biases, causality, layers before."""
    made = [
        LayerSpec(over_heads="l2", over_layers="max", first=True, last=False),
        LayerSpec(over_heads="l2", over_layers="max", first=False),
    ]
    random = torch.Generator().manual_seed(0)
    bias = torch.randn(1, 4, 12, 70, generator=random)
    mask = torch.rand(2, 1, 12, 70, generator=random) < 0.7
    for rule in ({"bias": bias, "mask": mask}, {"causal": True, "first": 40, "window": 9, "bias": bias[:, :1]}):
        layers = [make_layer(2, 4, 2, 12, 70, 16, seed=seed, **rule) for seed in range(2)]
        expected = truth.columns([layer.probabilities() for layer in layers], over_heads="l2", over_layers="max")
        apart = truth.columns([layers[0].probabilities()])
        with monkeypatch.context() as patch:
            patch.setattr(selection, "_FLOATS_BYTES", 4 * 2 * 70 * 4 * 5)  # five queries of four heads
            folded = run(layers, made, 12, 70, 1, "triton", encoding=encoding, top_k=60)
            assert_is(folded, expected, 4e-6)
            assert_is(run(layers[:1], [LayerSpec()], 12, 70, 4, "triton", encoding=encoding, top_k=60), apart, 1e-6)


def test_what_is_sorted_is_not_all_written(monkeypatch):
    monkeypatch.setattr(selection, "_FLOATS_BYTES", 4 * 600 * 8)
    layer = make_layer(1, 2, 2, 20, 600, 16)
    result = poisoned(1, 20, 600, 2, top_k=33)
    with Largest() as largest:
        rows(layer.query, layer.key, layer.scoring, result, impl="triton")
    assert_is(result, truth.columns([layer.probabilities()]), 1e-6)
    assert largest.bytes <= 8 * 600 * 8  # the places of a slice, int64
    layers = [torch.rand(1, 2, 20, 600) for _ in range(2)]
    result = poisoned(1, 20, 600, 4, top_k=33)
    with Largest() as largest:
        layout_into(layers, result, impl="triton")
    assert_is(result, truth.columns([layer.double().numpy() for layer in layers]), 2e-6)
    assert largest.bytes <= 8 * 600 * 8


@pytest.mark.parametrize("impl", IMPLS)
def test_one_layers_mean_as_one_needs_no_count(impl):
    layer = make_layer(1, 4, 2, 3, 9, 16)
    part = LayerSpec(over_heads="mean", over_layers="mean", as_one=True)
    expected = truth.columns([layer.probabilities()], over_heads="mean")
    assert_is(run([layer], [part], 3, 9, 1, impl), expected, TOLERANCE)


def test_capped_attention_takes_values_of_another_width():
    layer = make_layer(2, 4, 2, 5, 9, 16, softcap=2.0)
    value = torch.randn(2, 2, 9, 7)
    output = capped_attention(layer.query, layer.key, value, layer.scoring)
    assert output.shape == (2, 4, 5, 7)
    np.testing.assert_allclose(output, truth.output(layer.probabilities(), value.double().numpy()), atol=2e-6)


BAD = [
    ("query", {"query": torch.zeros(1, 4, 3)}),
    ("query", {"query": torch.zeros(1, 4, 3, 8, dtype=torch.float64)}),
    ("key", {"key": torch.zeros(1, 3, 5, 8)}),
    ("key", {"key": torch.zeros(1, 2, 5, 16)}),
    ("key", {"key": torch.zeros(2, 2, 5, 8)}),
    ("scoring.mask", {"scoring": AttentionParams(1.0, mask=torch.ones(1, 1, 3, 4, dtype=torch.bool))}),
    ("scoring.mask", {"scoring": AttentionParams(1.0, mask=torch.ones(3, 5, dtype=torch.bool))}),
    ("scoring.bias", {"scoring": AttentionParams(1.0, bias=torch.ones(1, 3, 3, 5))}),
    ("scoring.bias", {"scoring": AttentionParams(1.0, bias=torch.ones(1, 1, 3, 5, dtype=torch.bool))}),
    ("scoring.window", {"scoring": AttentionParams(1.0, window=3)}),
    ("scoring.softcap", {"scoring": AttentionParams(1.0, softcap=0.0)}),
    ("part.heads", {"part": LayerSpec(heads=(4,))}),
    ("part.heads", {"part": LayerSpec(heads=())}),
    ("part.column", {"part": LayerSpec(column=1)}),
    ("part.column", {"part": LayerSpec(column=-1)}),
    ("part.column", {"part": LayerSpec(over_heads="sum", column=-1)}),
    ("part.column", {"part": LayerSpec(over_heads="sum", column=4)}),
    ("part.columns", {"part": LayerSpec(columns=(0, 1, 2, 4))}),
    ("part.columns", {"part": LayerSpec(columns=(0, 1, 2, -1))}),
    ("part.columns", {"part": LayerSpec(heads=(1, 2), columns=(0, 0))}),
    ("part.columns", {"part": LayerSpec(heads=(1, 2), columns=(0,))}),
    ("part.over_heads", {"part": LayerSpec(over_heads="median")}),
    ("part.over_layers", {"part": LayerSpec(over_layers="sum")}),
    ("part.over_layers", {"part": LayerSpec(over_heads="sum", over_layers="sum")}),
    ("part.weights", {"part": LayerSpec(over_heads="max", weights=(1.0,) * 4)}),
    ("part.weights", {"part": LayerSpec(over_heads="mean", weights=(1.0,) * 3)}),
    ("part.weights", {"part": LayerSpec(over_heads="mean", weights=(1.0, 1.0, 1.0, -1.0))}),
    ("part.weights", {"part": LayerSpec(over_heads="mean", weights=(0.0,) * 4)}),
    ("part.count", {"part": LayerSpec(over_heads="mean", count=0.0)}),
    ("part.as_one", {"part": LayerSpec(over_heads="mean", over_layers="max", as_one=True)}),
    ("result", {"result": new_attention_tensors(1, 2, 5, 4)}),
    ("result", {"result": new_attention_tensors(1, 3, 4, 4)}),
    ("impl", {"impl": "cuda"}),
]


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name} {i}" for i, (name, _) in enumerate(BAD)])
def test_what_does_not_fit_is_named(name, change):
    arguments = {"query": torch.zeros(1, 4, 3, 8), "key": torch.zeros(1, 2, 5, 8), "scoring": AttentionParams(1.0)}
    arguments |= {"result": new_attention_tensors(1, 3, 5, 4), "part": LayerSpec()} | change
    with pytest.raises(ValueError, match=rf"^{name}:"):
        rows(**arguments)


def test_a_mean_over_layers_as_one_needs_its_count():
    part = LayerSpec(over_heads="mean", over_layers="mean", as_one=True, last=False)
    result = new_attention_tensors(1, 3, 5, 1, pools_layers=True)
    with pytest.raises(ValueError, match=r"^part\.count:"):
        rows(torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8), AttentionParams(1.0), result, part)


def test_a_result_names_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"^encoding:"):
        new_attention_tensors(1, 1, 1, 1, encoding="int4")
    with pytest.raises(ValueError, match=r"^top_k:"):
        new_attention_tensors(1, 1, 1, 1, top_k=-1)
