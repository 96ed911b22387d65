"""Rows that leave out keys and have factors, of `rows` and `decode`, Triton and reference, against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import ENCODINGS, IMPLS, assert_is, draw_options, draw_specs, make_layer, poisoned, tolerance_for
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels import KeyWeighting, LayerSpec, decode, rows


def make_weighting(batch, heads, keys, seed, *, leaves_out=True, has_factors=True, shared=False):
    random = torch.Generator().manual_seed(seed)
    of_batch = 1 if shared else batch
    left_out = torch.rand(of_batch, keys, generator=random) < 0.3 if leaves_out else None
    factors = torch.rand(of_batch, keys, heads, generator=random).transpose(1, 2) * 3 if has_factors else None
    return KeyWeighting(left_out, factors)


def weighted(probabilities, weighting):
    """Returns float64 rows `[B, H, T, S]` and the shares of left-out keys `[B, H, T]`."""
    shares = np.zeros(probabilities.shape[:3])
    if weighting.left_out is not None:
        hidden = weighting.left_out.numpy()[:, None, None]
        shares = np.where(hidden, probabilities, 0).sum(-1)
        probabilities = np.where(hidden, 0, probabilities)
        kept = probabilities.sum(-1, keepdims=True)
        probabilities = probabilities / np.where(kept == 0, 1, kept)
    if weighting.factors is not None:
        probabilities = probabilities * weighting.factors.double().numpy()[:, :, None]
    return probabilities, shares


def run(operation, layers, specs, length, columns, weighting, impl, **options):
    query = layers[0].query
    has_shares = weighting.left_out is not None
    shape = (query.shape[0], query.shape[2], length, columns)
    out = poisoned(*shape, pools_layers=specs[0].pools_layers, has_shares=has_shares, **options)
    if has_shares:
        out.shares.fill_(float("nan"))
    for layer, spec in zip(layers, specs, strict=True):
        if operation == "rows":
            rows(layer.query, layer.key, layer.params, out, spec, weighting, impl=impl)
        else:
            decode(layer.query, layer.key, layer.value, layer.params, out, spec, weighting, impl=impl)
    return out


# Batch, heads, key heads, queries, keys, width; the keys of the last are more than one split.
SHAPES = [(1, 1, 1, 1, 1, 8), (2, 4, 2, 5, 33, 40), (2, 2, 2, 33, 37, 16), (1, 2, 1, 1, 1100, 16)]


# In Triton's interpreter, `rows` of so many keys take long.
CASES = [("decode", shape) for shape in SHAPES] + [("rows", shape) for shape in SHAPES[:-1]]


@pytest.mark.covering(2)
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("operation", "shape"), [*CASES, pytest.param("rows", SHAPES[-1], marks=pytest.mark.slow)], ids=str
)
def test_odd_shapes(operation, shape, impl):
    batch, heads, key_heads, queries, keys, width = shape
    queries = queries if operation == "rows" else 1
    layer = make_layer(batch, heads, key_heads, queries, keys, width, causal=True, first_position=keys - queries)
    for left_out, factors, shared in ((True, False, False), (False, True, False), (True, True, True)):
        weighting = make_weighting(batch, heads, keys, 1, leaves_out=left_out, has_factors=factors, shared=shared)
        expected, shares = weighted(layer.probabilities(), weighting)
        result = run(operation, [layer], [LayerSpec()], keys, heads, weighting, impl)
        assert_is(result, truth.columns([expected]), 3e-6)
        if left_out:
            np.testing.assert_allclose(result.shares, shares.transpose(0, 2, 1), atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operation", ["rows", "decode"])
def test_a_row_whose_keys_are_all_left_out_is_zeros_and_its_share_is_one(operation, impl):
    layer = make_layer(2, 4, 2, 1, 40, 16)
    left_out = torch.ones(2, 40, dtype=torch.bool)
    left_out[1, 7] = False
    result = run(operation, [layer], [LayerSpec()], 40, 4, KeyWeighting(left_out), impl)
    assert not result.values[0].any()
    np.testing.assert_allclose(result.shares[0], 1, atol=1e-6)
    np.testing.assert_allclose(result.values[1, :, 7], 1, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operation", ["rows", "decode"])
def test_a_key_that_takes_nearly_everything_leaves_exact_rows(operation, impl):
    """The others have a millionth of the row together: divided by that, they are as exact as any row."""
    layer = make_layer(1, 2, 2, 1, 33, 16)
    layer.key[:, :, 3] = layer.query[:, :, 0] * 4
    weighting = KeyWeighting(torch.arange(33)[None] == 3)
    expected, shares = weighted(layer.probabilities(), weighting)
    assert (shares > 0.9).all()
    result = run(operation, [layer], [LayerSpec()], 33, 2, weighting, impl)
    np.testing.assert_allclose(result.values, truth.columns([expected]), rtol=2e-5)
    np.testing.assert_allclose(result.shares, shares.transpose(0, 2, 1), atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operation", ["rows", "decode"])
def test_heads_are_selected_with_their_factors(operation, impl):
    layer = make_layer(2, 4, 2, 1, 33, 16)
    weighting = make_weighting(2, 4, 33, 5)
    expected, shares = weighted(layer.probabilities(), weighting)
    specs = [LayerSpec(heads=(3, 0), columns=(2, 0)), LayerSpec(heads=(1,), columns=(1,))]
    result = run(operation, [layer, layer], specs, 33, 3, weighting, impl)
    order = [0, 1, 3]
    assert_is(result, truth.columns([expected[:, order]]), 3e-6)
    np.testing.assert_allclose(result.shares, shares[:, order].transpose(0, 2, 1), atol=1e-6)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operation", ["rows", "decode"])
@pytest.mark.parametrize("encoding", ["float32", "uint8"])
def test_keys_after_missing_positions_have_their_own_factors(encoding, operation, impl):
    """As in a layer with a sliding window: a row has more positions than the layer has keys."""
    keys, missing = 33, 7
    layer = make_layer(2, 4, 2, 1, keys, 16)
    weighting = make_weighting(2, 4, keys, 3)
    expected, shares = weighted(layer.probabilities(), weighting)
    result = run(operation, [layer], [LayerSpec()], missing + keys, 4, weighting, impl, encoding=encoding)
    positions = np.pad(expected, [(0, 0)] * 3 + [(missing, 0)])
    assert_is(result, truth.columns([positions]), 3e-6)
    np.testing.assert_allclose(result.shares, shares.transpose(0, 2, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("operation", ["rows", "decode"])
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(data=st.data())
def test_any_weighting_of_any_capture(operation, impl, data):
    batch, heads, keys = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([2, 4])), data.draw(st.integers(1, 70))
    queries = data.draw(st.integers(1, 20)) if operation == "rows" else 1
    options = data.draw(draw_options(heads, queries, keys, batch))
    specs, columns_options, columns = data.draw(draw_specs(heads))
    layers = [make_layer(batch, heads, heads // 2, queries, keys, 16, seed=i, **options) for i in range(len(specs))]
    encoding, kept = data.draw(ENCODINGS)
    weighting = make_weighting(
        batch, heads, keys, data.draw(st.integers(0, 99)),
        leaves_out=data.draw(st.booleans()), has_factors=data.draw(st.booleans()), shared=data.draw(st.booleans()),
    )  # fmt: skip
    if specs[0].pools_all_heads:
        specs = [spec._replace(num_pooled_heads=heads * len(specs)) for spec in specs]
    pairs = [weighted(layer.probabilities(), weighting) for layer in layers]
    expected = truth.columns([row for row, _ in pairs], **columns_options)
    result = run(operation, layers, specs, keys, columns, weighting, impl, encoding=encoding, top_k=kept)
    tolerance = 4 * tolerance_for(expected, columns_options or {"a": 1}, len(layers) * heads)
    assert_is(result, expected, tolerance)
    if weighting.left_out is None:
        return
    shares = np.stack([share for _, share in pairs], 1)  # [B, layers, H, T]
    if specs[0].over_heads is None:
        shares = shares.reshape(batch, -1, queries)
    else:
        shares = shares.mean(2)
        shares = shares.mean(1, keepdims=True) if specs[0].pools_layers else shares
    np.testing.assert_allclose(result.shares, shares.transpose(0, 2, 1), atol=1e-5)
