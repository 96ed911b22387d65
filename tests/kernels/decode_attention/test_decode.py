"""`decode`, Triton and reference: rows and attention output against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import (
    DTYPES,
    ENCODINGS,
    IMPLS,
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
from sidelight.kernels import AttentionParams, LayerSpec, decode, new_attention_tensors

SHAPES = [
    (1, 1, 1, 1, 8),
    (3, 3, 1, 37, 16),
    (2, 6, 2, 65, 40),
    (1, 8, 8, 131, 64),
    (1, 16, 2, 50, 128),
    (1, 2, 1, 33, 256),
    (1, 4, 2, 1300, 16),  # more than one split of the keys
]


def run(layers, specs, length, columns, impl, **options):
    """Writes all layers. Returns the tensors, and the attention output of the last layer."""
    batch = layers[0].query.shape[0]
    out = poisoned(batch, 1, length, columns, pools_layers=specs[0].pools_layers, **options)
    for layer, spec in zip(layers, specs, strict=True):
        output = decode(layer.query, layer.key, layer.value, layer.params, out, spec, impl=impl)
    return out, output


# Outputs are rounded to their dtype, and so are the probabilities that they are computed from, as in fused attention.
ROUNDING = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_output(output, probabilities, value):
    values = value.double().numpy()
    tolerance = 2 * ROUNDING[output.dtype] * max(1, np.abs(values).max())
    np.testing.assert_allclose(output.double(), truth.output(probabilities, values), atol=tolerance, rtol=0)


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape, dtype, impl):
    batch, heads, key_heads, keys, width = shape
    layer = make_layer(batch, heads, key_heads, 1, keys, width, dtype)
    expected = layer.probabilities()
    result, output = run([layer], [LayerSpec()], keys, heads, impl)
    assert_is(result, truth.columns([expected]), TOLERANCE)
    np.testing.assert_allclose(result.values.sum(2), np.ones((batch, 1, heads)), atol=1e-5)
    assert output.dtype == dtype
    assert_output(output, expected, layer.value)


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [150, 1300])
def test_rows_sum_to_one_however_large_the_scores(keys, dtype, impl):
    layer = make_layer(2, 4, 2, 1, keys, 64)
    layer.query, layer.key, layer.value = ((layer.query * 300).to(dtype), layer.key.to(dtype), layer.value.to(dtype))
    result, _ = run([layer], [LayerSpec()], keys, 4, impl)
    np.testing.assert_allclose(result.values.sum(2), np.ones((2, 1, 4)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("keys", [45, 1300])
def test_a_mask_of_the_smallest_number_everywhere_hides_nothing(keys, dtype, impl):
    """The number is finite: all scores change alike, so no probability changes."""
    mask = torch.full((1, 1, 1, keys), torch.finfo(dtype).min, dtype=dtype)
    layer = make_layer(1, 2, 2, 1, keys, 16, mask=mask)
    result, output = run([layer], [LayerSpec()], keys, 2, impl)
    np.testing.assert_allclose(result.values.sum(2), np.ones((1, 1, 2)), atol=1e-5)
    assert output.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_before_the_keys_are_zeros(impl):
    layer = make_layer(2, 4, 2, 1, 20, 16)
    expected = truth.columns([layer.probabilities()], length=33)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 30}):
        assert_is(run([layer], [LayerSpec()], 33, 4, impl, **options)[0], expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_heads_in_given_columns(impl):
    layers = [make_layer(1, 4, 2, 1, 21, 16, seed=seed) for seed in range(2)]
    specs = [LayerSpec(heads=(3, 0), columns=(2, 0)), LayerSpec(heads=(1,), columns=(1,))]
    first, second = (truth.columns([layer.probabilities()]) for layer in layers)
    expected = np.stack([first[..., 0], second[..., 1], first[..., 3]], -1)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        assert_is(run(layers, specs, 21, 3, impl, **options)[0], expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_heads_in_given_columns(impl):
    layer = make_layer(1, 4, 2, 1, 21, 16)
    order = (2, 7, 0, 5)
    expected = truth.columns([layer.probabilities()])
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        result = poisoned(1, 1, 21, 8, **options)
        decode(layer.query, layer.key, layer.value, layer.params, result, LayerSpec(columns=order), impl=impl)
        assert_is(select_columns(result, order), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("first_position", [8, 20])
def test_keys_and_values_that_causality_hides_may_be_nan(first_position, impl):
    layer = make_layer(2, 4, 2, 1, 40, 16, causal=True, first_position=first_position)
    expected = layer.probabilities()
    values = layer.value.clone()
    for tensor in (layer.key, layer.value):
        tensor[:, :, first_position + 1 :] = float("nan")
    result, output = run([layer], [LayerSpec()], 40, 4, impl)
    assert_is(result, truth.columns([expected]), TOLERANCE)
    assert_output(output, expected, values)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_in_one_split_is_not_hidden_by_the_others(impl):
    layer = make_layer(1, 2, 2, 1, 1300, 16)
    layer.key[0, 0, 1100] = float("nan")
    result, output = run([layer], [LayerSpec()], 1300, 2, impl)
    assert output[0, 0].isnan().all()
    assert result.values[0, 0, :, 0].isnan().all()
    assert output[0, 1].isfinite().all()
    np.testing.assert_allclose(result.values[0, 0, :, 1].sum(), 1, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("first_position", "keys"), [(-3, 45), (0, 45), (8, 45), (44, 45), (200, 45), (900, 1300)])
def test_causality(first_position, keys, impl):
    """From before the first key to after the last, and in the middle of splits."""
    layer = make_layer(1, 4, 2, 1, keys, 16, causal=True, first_position=first_position)
    expected = layer.probabilities()
    result, output = run([layer], [LayerSpec()], keys, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    np.testing.assert_allclose(output, truth.output(expected, layer.value.double().numpy()), atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype, impl):
    """Queries, keys, values, biases and masks, each with strides of its own."""
    random = torch.Generator().manual_seed(0)
    layer = make_layer(2, 6, 3, 1, 70, 24)
    layer.query = torch.randn(2, 24, 6, 5, generator=random).permute(0, 2, 3, 1)[:, :, 3:4]
    layer.key = torch.randn(70, 3, 2, 48, generator=random).permute(2, 1, 0, 3)[..., ::2]
    layer.value = torch.randn(24, 70, 2, 3, generator=random).permute(2, 3, 1, 0)
    bias = torch.randn(2, 6, 70, 1, generator=random).to(dtype).transpose(2, 3)
    hidden = torch.rand(70, 1, 6, 2, generator=random).permute(3, 2, 1, 0) < 0.4
    for mask in (~hidden, torch.zeros(hidden.shape).masked_fill(hidden, -3.0).to(dtype)):
        layer.options |= {"bias": bias, "mask": mask, "softcap": 3.0}
        result, output = run([layer], [LayerSpec()], 70, 6, impl)
        expected = layer.probabilities()
        assert_is(result, truth.columns([expected]), 1e-6)
        np.testing.assert_allclose(output, truth.output(expected, layer.value.double().numpy()), atol=4e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=50, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1), (8, 2)]))
    batch, keys = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 32, 33, 100, 150, 1100]))
    width = data.draw(st.sampled_from([8, 32, 40, 64, 80]))
    dtype = data.draw(st.sampled_from(DTYPES))
    specs, truth_options, columns = data.draw(draw_specs(heads))
    layers = [
        make_layer(batch, heads, key_heads, 1, keys, width, dtype, i, **data.draw(draw_options(heads, 1, keys, batch)))
        for i in range(len(specs))
    ]
    length = keys + data.draw(st.sampled_from([0, 0, 5]))
    encoding, top_k = data.draw(ENCODINGS)
    matrices = [layer.probabilities() for layer in layers]
    expected = truth.columns(matrices, length=length, **truth_options)
    for impl in IMPLS:
        result, output = run(layers, specs, length, columns, impl, encoding=encoding, top_k=top_k)
        assert_is(result, expected, tolerance_for(expected, truth_options, len(specs)))
        assert_output(output, matrices[-1], layers[-1].value)


def test_deterministic_and_independent_of_neighbours():
    layer = make_layer(3, 2, 1, 1, 1300, 16, mask=torch.arange(1300) < torch.tensor([1300, 900, 3]).view(3, 1, 1, 1))
    first, second = (run([layer], [LayerSpec()], 1300, 2, "triton") for _ in range(2))
    assert torch.equal(first[0].values, second[0].values)
    assert torch.equal(first[1], second[1])
    layer.query, layer.key, layer.value = layer.query[1:2], layer.key[1:2], layer.value[1:2]
    layer.options["mask"] = layer.options["mask"][1:2]
    alone = run([layer], [LayerSpec()], 1300, 2, "triton")
    # A slot alone may be computed in more splits, whose sums round differently.
    np.testing.assert_allclose(alone[0].values[0], first[0].values[1], atol=1e-7)
    np.testing.assert_allclose(alone[1][0], first[1][1], atol=1e-6)


BAD = [
    ("query", {"query": torch.zeros(1, 4, 2, 8)}),
    ("value", {"value": torch.zeros(1, 2, 5, 16)}),
    ("value", {"value": torch.zeros(1, 2, 4, 8)}),
    ("out", {"out": new_attention_tensors(2, 1, 5, 4)}),
    ("out", {"out": new_attention_tensors(1, 1, 4, 4)}),
    ("spec.heads", {"spec": LayerSpec(heads=(4,))}),
    ("spec.column", {"spec": LayerSpec(column=-1)}),
    ("spec.columns", {"spec": LayerSpec(columns=(0, 1, 2, -1))}),
    ("spec.columns", {"spec": LayerSpec(columns=(0, 1, 2, 2))}),
]


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name} {i}" for i, (name, _) in enumerate(BAD)])
def test_errors_name_the_argument(name, change):
    arguments = {"query": torch.zeros(1, 4, 1, 8), "key": torch.zeros(1, 2, 5, 8), "value": torch.zeros(1, 2, 5, 8)}
    arguments |= {
        "params": AttentionParams(1.0),
        "out": new_attention_tensors(1, 1, 5, 4),
        "spec": LayerSpec(),
    } | change
    with pytest.raises(ValueError, match=rf"^{name}:"):
        decode(**arguments)
