"""`decode`, kernel and reference: its rows and its output against float64."""

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
    make_layer,
    parts,
    picked,
    poisoned,
    rules,
    tolerance_of,
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
    (1, 4, 2, 1300, 16),  # more than one share of the keys
]


def run(layers, made, length, columns, impl, lengths=None, **options):
    batch = layers[0].query.shape[0]
    result = poisoned(batch, 1, length, columns, pools_layers=made[0].pools_layers, **options)
    for layer, part in zip(layers, made, strict=True):
        output = decode(layer.query, layer.key, layer.value, layer.scoring, result, part, lengths=lengths, impl=impl)
    return result, output


# An output is rounded to its type, and so are the probabilities that it is made of, as fused attention does it.
ROUNDED = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def assert_output(output, probabilities, value):
    values = value.double().numpy()
    tolerance = 2 * ROUNDED[output.dtype] * max(1, np.abs(values).max())
    np.testing.assert_allclose(output.double(), truth.output(probabilities, values), atol=tolerance, rtol=0)


def seen(lengths, keys, window=None) -> np.ndarray:
    position = np.arange(keys)
    ends = np.array(lengths)[:, None]
    return (position < ends) & (position >= (ends - window if window else 0))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_that_hurt(shape, dtype, impl):
    batch, heads, key_heads, keys, width = shape
    layer = make_layer(batch, heads, key_heads, 1, keys, width, dtype)
    expected = layer.probabilities()
    result, output = run([layer], [LayerSpec()], keys, heads, impl)
    assert_is(result, truth.columns([expected]), TOLERANCE)
    np.testing.assert_allclose(result.values.sum(2), np.ones((batch, 1, heads)), atol=1e-5)
    assert output.dtype == dtype
    assert_output(output, expected, layer.value)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("window", [None, 1, 20, 500])
@pytest.mark.parametrize("keys", [130, 1300])
def test_uneven_slots(keys, window, impl):
    lengths = [keys, 0, 17, 1]
    rule = {} if window is None else {"causal": True, "window": window}
    layer = make_layer(4, 4, 2, 1, keys, 16, **rule)
    expected = make_layer(4, 4, 2, 1, keys, 16).probabilities(seen(lengths, keys, window))
    lengths = torch.tensor(lengths, dtype=torch.int32)
    # Packing knows nothing of shares, and takes the interpreter long.
    for options in ({}, {"encoding": "uint8"}, {"top_k": 5}) if keys == 130 else ({},):
        result, output = run([layer], [LayerSpec()], keys, 4, impl, lengths, **options)
        assert_is(result, truth.columns([expected]), TOLERANCE)
        assert_output(output, expected, layer.value)
        assert (output[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
@pytest.mark.parametrize("window", [None, 5])
def test_what_a_slot_does_not_use_may_be_anything(window, mask, impl):
    random = torch.Generator().manual_seed(0)
    rule = {}
    if mask != "none":
        hidden = torch.rand(1, 1, 1, 70, generator=random) < 0.3
        rule["mask"] = ~hidden if mask == "bool" else torch.zeros(hidden.shape).masked_fill(hidden, -2.0)
    layer = make_layer(3, 4, 2, 1, 70, 16, **rule)
    lengths = [70, 17, 33]
    used = seen(lengths, 70, window)
    expected = layer.probabilities(used)
    values = layer.value.clone()
    for tensor in (layer.key, layer.value):
        tensor.masked_fill_(torch.from_numpy(~used)[:, None, :, None], float("nan"))
    layer.rule |= {"causal": window is not None, "window": window}
    result, output = run([layer], [LayerSpec()], 70, 4, impl, torch.tensor(lengths, dtype=torch.int32))
    assert_is(result, truth.columns([expected]), TOLERANCE)
    assert_output(output, expected, values)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("window", [None, 5])
def test_lengths_of_any_strides_and_above_the_keys(window, impl):
    given = torch.tensor([[3, 40], [50, 1], [40, 7]], dtype=torch.int32)[:, 0]
    assert not given.is_contiguous()
    layer = make_layer(3, 4, 2, 1, 40, 16)
    expected = layer.probabilities(seen([3, 40, 40], 40, window))
    layer.rule |= {"causal": window is not None, "window": window}
    result, output = run([layer], [LayerSpec()], 40, 4, impl, given)
    assert_is(result, truth.columns([expected]), TOLERANCE)
    assert_output(output, expected, layer.value)


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
def test_a_mask_of_the_least_number_throughout_hides_nothing(keys, dtype, impl):
    """It is finite: it leaves every score the same, and so every probability."""
    mask = torch.full((1, 1, 1, keys), torch.finfo(dtype).min, dtype=dtype)
    layer = make_layer(1, 2, 2, 1, keys, 16, mask=mask)
    result, output = run([layer], [LayerSpec()], keys, 2, impl)
    np.testing.assert_allclose(result.values.sum(2), np.ones((1, 1, 2)), atol=1e-5)
    assert output.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_that_a_window_has_forgotten_are_zeros(impl):
    layer = make_layer(2, 4, 2, 1, 20, 16)
    expected = truth.columns([layer.probabilities()], length=33)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 30}):
        assert_is(run([layer], [LayerSpec()], 33, 4, impl, **options)[0], expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_pairs_go_where_they_are_told(impl):
    layers = [make_layer(1, 4, 2, 1, 21, 16, seed=seed) for seed in range(2)]
    made = [LayerSpec(heads=(3, 0), columns=(2, 0)), LayerSpec(heads=(1,), columns=(1,))]
    first, second = (truth.columns([layer.probabilities()]) for layer in layers)
    expected = np.stack([first[..., 0], second[..., 1], first[..., 3]], -1)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        assert_is(run(layers, made, 21, 3, impl, **options)[0], expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_all_heads_out_of_order(impl):
    layer = make_layer(1, 4, 2, 1, 21, 16)
    order = (2, 7, 0, 5)
    expected = truth.columns([layer.probabilities()])
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        result = poisoned(1, 1, 21, 8, **options)
        decode(layer.query, layer.key, layer.value, layer.scoring, result, LayerSpec(columns=order), impl=impl)
        assert_is(picked(result, order), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("first", "window"), [(8, None), (20, 5)])
def test_what_causality_hides_may_be_anything(first, window, impl):
    layer = make_layer(2, 4, 2, 1, 40, 16, causal=True, first=first, window=window)
    expected = layer.probabilities()
    values = layer.value.clone()
    unseen = torch.ones(40, dtype=torch.bool)
    unseen[0 if window is None else first + 1 - window : first + 1] = False
    for tensor in (layer.key, layer.value):
        tensor[:, :, unseen] = float("nan")
    result, output = run([layer], [LayerSpec()], 40, 4, impl)
    assert_is(result, truth.columns([expected]), TOLERANCE)
    assert_output(output, expected, values)


@pytest.mark.parametrize("impl", IMPLS)
def test_not_a_number_in_one_share_is_not_hidden_by_the_others(impl):
    layer = make_layer(1, 2, 2, 1, 1300, 16)
    layer.key[0, 0, 1100] = float("nan")
    result, output = run([layer], [LayerSpec()], 1300, 2, impl)
    assert output[0, 0].isnan().all()
    assert result.values[0, 0, :, 0].isnan().all()
    assert output[0, 1].isfinite().all()
    np.testing.assert_allclose(result.values[0, 0, :, 1].sum(), 1, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("first", "window"), [(0, None), (8, None), (-3, None), (0, 1), (44, 7), (47, 7), (200, 7)])
def test_causality_and_windows(first, window, impl):
    """From before the first key to behind the last."""
    layer = make_layer(1, 4, 2, 1, 45, 16, causal=True, first=first, window=window)
    expected = layer.probabilities()
    result, output = run([layer], [LayerSpec()], 45, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    np.testing.assert_allclose(output, truth.output(expected, layer.value.double().numpy()), atol=2e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype, impl):
    """Of queries, keys, values, biases and masks: each its own."""
    random = torch.Generator().manual_seed(0)
    layer = make_layer(2, 6, 3, 1, 70, 24)
    layer.query = torch.randn(2, 24, 6, 5, generator=random).permute(0, 2, 3, 1)[:, :, 3:4]
    layer.key = torch.randn(70, 3, 2, 48, generator=random).permute(2, 1, 0, 3)[..., ::2]
    layer.value = torch.randn(24, 70, 2, 3, generator=random).permute(2, 3, 1, 0)
    bias = torch.randn(2, 6, 70, 1, generator=random).to(dtype).transpose(2, 3)
    hidden = torch.rand(70, 1, 6, 2, generator=random).permute(3, 2, 1, 0) < 0.4
    for mask in (~hidden, torch.zeros(hidden.shape).masked_fill(hidden, -3.0).to(dtype)):
        layer.rule |= {"bias": bias, "mask": mask, "softcap": 3.0}
        result, output = run([layer], [LayerSpec()], 70, 6, impl)
        expected = layer.probabilities()
        assert_is(result, truth.columns([expected]), 1e-6)
        np.testing.assert_allclose(output, truth.output(expected, layer.value.double().numpy()), atol=4e-6)


@settings(deadline=None, max_examples=50, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1), (8, 2)]))
    batch, keys = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 32, 33, 100, 150, 1100]))
    width = data.draw(st.sampled_from([8, 32, 40, 64, 80]))
    dtype = data.draw(st.sampled_from(DTYPES))
    made, how, columns = data.draw(parts(heads))
    layers = [
        make_layer(batch, heads, key_heads, 1, keys, width, dtype, i, **data.draw(rules(heads, 1, keys, batch)))
        for i in range(len(made))
    ]
    length = keys + data.draw(st.sampled_from([0, 0, 5]))
    encoding, top_k = data.draw(ENCODINGS)
    lengths = data.draw(st.none() | st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    matrices = []
    for layer in layers:
        hidden = None
        if lengths is not None:  # they take the place of causality, and the window is before them
            window = layer.rule.pop("window", None)
            causal = layer.rule.pop("causal", False)
            layer.rule.pop("first", None)
            hidden = seen(lengths, keys, window)
            matrices.append(layer.probabilities(hidden))
            layer.rule |= {"causal": causal, "window": window}
        else:
            matrices.append(layer.probabilities())
    expected = truth.columns(matrices, length=length, **how)
    slots = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    for impl in IMPLS:
        result, output = run(layers, made, length, columns, impl, slots, encoding=encoding, top_k=top_k)
        assert_is(result, expected, tolerance_of(expected, how, len(made)))
        assert_output(output, matrices[-1], layers[-1].value)


def test_the_same_numbers_every_time_and_whatever_the_neighbours():
    layer = make_layer(3, 4, 2, 1, 1300, 16)
    lengths = torch.tensor([1300, 900, 3], dtype=torch.int32)
    once, twice = (run([layer], [LayerSpec()], 1300, 4, "triton", lengths) for _ in range(2))
    assert torch.equal(once[0].values, twice[0].values)
    assert torch.equal(once[1], twice[1])
    layer.query, layer.key, layer.value = layer.query[1:2], layer.key[1:2], layer.value[1:2]
    alone = run([layer], [LayerSpec()], 1300, 4, "triton", lengths[1:2])
    # Alone it may be split into more shares, whose sums round otherwise.
    np.testing.assert_allclose(alone[0].values[0], once[0].values[1], atol=1e-7)
    np.testing.assert_allclose(alone[1][0], once[1][1], atol=1e-6)


BAD = [
    ("query", {"query": torch.zeros(1, 4, 2, 8)}),
    ("value", {"value": torch.zeros(1, 2, 5, 16)}),
    ("value", {"value": torch.zeros(1, 2, 4, 8)}),
    ("result", {"result": new_attention_tensors(2, 1, 5, 4)}),
    ("result", {"result": new_attention_tensors(1, 1, 4, 4)}),
    ("lengths", {"lengths": torch.tensor([3])}),
    ("lengths", {"lengths": torch.tensor([3, 3], dtype=torch.int32)}),
    ("part.heads", {"part": LayerSpec(heads=(4,))}),
    ("part.column", {"part": LayerSpec(column=-1)}),
    ("part.columns", {"part": LayerSpec(columns=(0, 1, 2, -1))}),
    ("part.columns", {"part": LayerSpec(columns=(0, 1, 2, 2))}),
    ("scoring.window", {"scoring": AttentionParams(1.0, window=2)}),
]


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name} {i}" for i, (name, _) in enumerate(BAD)])
def test_what_does_not_fit_is_named(name, change):
    arguments = {"query": torch.zeros(1, 4, 1, 8), "key": torch.zeros(1, 2, 5, 8), "value": torch.zeros(1, 2, 5, 8)}
    arguments |= {
        "scoring": AttentionParams(1.0),
        "result": new_attention_tensors(1, 1, 5, 4),
        "part": LayerSpec(),
    } | change
    with pytest.raises(ValueError, match=rf"^{name}:"):
        decode(**arguments)
