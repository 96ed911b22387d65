"""`rows`, kernel and reference, against float64."""

from __future__ import annotations

import attention_truth as truth
import numpy as np
import pytest
import torch
from attention_cases import ENCODINGS, IMPLS, REDUCTIONS, TYPES, assert_is, make_layer, parts, poisoned, rules
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels import Part, Scoring, new_result, rows

# Batch, heads, key heads, queries, keys, width.
SHAPES = [
    (1, 1, 1, 1, 1, 8),
    (2, 3, 1, 1, 37, 16),
    (1, 4, 4, 37, 1, 32),
    (2, 6, 2, 33, 65, 40),
    (1, 8, 2, 70, 131, 64),
    (1, 5, 5, 64, 64, 80),
    (1, 2, 1, 17, 40, 128),
    (1, 2, 2, 9, 50, 256),
]


def run(layers, made, queries, length, columns, impl, *, known=False, folds=False, **options):
    result = poisoned(
        layers[0].query.shape[0], queries, length, columns, folds_layers=made[0].folds_layers or folds, **options
    )
    for layer, part in zip(layers, made, strict=True):
        log_sum_exp = None
        if known:
            scores = truth.scores(
                layer.query.double().numpy(),
                layer.key.double().numpy(),
                **{n: v.numpy() if isinstance(v, torch.Tensor) else v for n, v in layer.rule.items()},
            )
            with np.errstate(divide="ignore"):
                greatest = scores.max(-1)
                base = np.where(np.isinf(greatest), 0, greatest)
                log_sum_exp = base + np.log(np.exp(scores - base[..., None]).sum(-1))
            log_sum_exp = torch.from_numpy(np.where(np.isinf(greatest), np.inf, log_sum_exp)).float()
        rows(layer.query, layer.key, layer.scoring, result, part, log_sum_exp=log_sum_exp, impl=impl)
    return result


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("dtype", "tolerance"), TYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_that_hurt(shape, dtype, tolerance, impl):
    batch, heads, _, queries, keys, _ = shape
    layer = make_layer(*shape, dtype, causal=True, first=keys - 1)
    expected = layer.probabilities()
    apart = run([layer], [Part()], queries, keys, heads, impl)
    assert_is(apart, truth.columns([expected]), tolerance)
    np.testing.assert_allclose(apart.values.sum(2), np.ones((batch, queries, heads)), atol=1e-5)
    mean = run([layer], [Part(over_heads="mean")], queries, keys, 1, impl)
    assert_is(mean, truth.columns([expected], over_heads="mean"), tolerance)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction(reduction, impl):
    layers = [make_layer(1, 6, 2, 19, 35, 16, seed=seed) for seed in range(3)]
    expected = [layer.probabilities() for layer in layers]
    part = Part(over_heads=reduction, over_layers=reduction, layer_count=3)
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
    result = run([layer], [Part()], 5, 33, 4, impl)
    assert_is(result, truth.columns([expected]), 1e-6)
    for reduction, factor in (("sum", 4), ("mean", 1)):
        folded = run([layer], [Part(over_heads=reduction)], 5, 33, 1, impl)
        np.testing.assert_allclose(folded.values.sum(2), factor * np.ones((1, 5, 1)), atol=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_that_see_nothing_are_zeros(impl):
    mask = torch.rand(2, 1, 7, 40) < 0.5
    mask[0, :, 3] = False
    mask[1] = False
    layer = make_layer(2, 4, 4, 7, 40, 16, mask=mask)
    for part, columns in ((Part(), 4), (Part(over_heads="max"), 1)):
        for options in ({}, {"encoding": "uint8"}, {"top_k": 4}):
            result = run([layer], [part], 7, 40, columns, impl, **options)
            assert (result.values[0, 3] == 0).all()
            assert (result.values[1] == 0).all()
            assert (result.values[0, 2].sum(0) > 0).all()
            assert result.scales is None or (result.scales[1] == 0).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_positions_that_a_window_has_forgotten_are_zeros(impl):
    layer = make_layer(1, 4, 2, 3, 20, 16)
    expected = truth.columns([layer.probabilities()], length=33)
    assert_is(run([layer], [Part()], 3, 33, 4, impl), expected, 1e-6)
    assert_is(run([layer], [Part()], 3, 33, 4, impl, encoding="uint8"), expected, 1e-6)
    assert_is(run([layer], [Part()], 3, 33, 4, impl, top_k=30), expected, 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_pairs_go_where_they_are_told(impl):
    layers = [make_layer(1, 4, 2, 6, 21, 16, seed=seed) for seed in range(2)]
    made = [Part(heads=(3, 0), columns=(2, 0)), Part(heads=(1,), columns=(1,))]
    first, second = (truth.columns([layer.probabilities()]) for layer in layers)
    expected = np.stack([first[..., 0], second[..., 1], first[..., 3]], -1)
    for options in ({}, {"encoding": "uint8"}, {"top_k": 3}, {"top_k": 35}):
        assert_is(run(layers, made, 6, 21, 3, impl, **options), expected, 1e-6)


@settings(deadline=None, max_examples=25, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    heads, key_heads = data.draw(st.sampled_from([(1, 1), (4, 4), (6, 2), (3, 1), (8, 2)]))
    batch, queries = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([1, 2, 16, 31, 32, 33, 70]))
    keys = data.draw(st.sampled_from([1, 3, 32, 33, 64, 100, 150]))
    width = data.draw(st.sampled_from([8, 32, 40]))
    dtype, tolerance = data.draw(st.sampled_from(TYPES))
    made, how, columns = data.draw(parts(heads))
    layers = [
        make_layer(
            batch, heads, key_heads, queries, keys, width, dtype, i, **data.draw(rules(heads, queries, keys, batch))
        )
        for i in range(len(made))
    ]
    length = keys + data.draw(st.sampled_from([0, 0, 5]))
    encoding, top_k = data.draw(ENCODINGS)
    known = data.draw(st.booleans())
    expected = truth.columns([layer.probabilities() for layer in layers], length=length, **how)
    # Folds add up their members' errors.
    tolerance *= max(1.0, np.abs(expected).max()) * (len(made) if how else 1) + 1
    for impl in IMPLS:
        result = run(layers, made, queries, length, columns, impl, known=known, encoding=encoding, top_k=top_k)
        assert_is(result, expected, tolerance)


def test_the_same_numbers_every_time_and_whatever_the_neighbours():
    layer = make_layer(3, 4, 2, 40, 70, 16, causal=True, first=30)
    part = Part(over_heads="mean")
    once, twice = (run([layer], [part], 40, 70, 1, "triton") for _ in range(2))
    assert torch.equal(once.values, twice.values)
    alone = make_layer(3, 4, 2, 40, 70, 16, causal=True, first=30)
    alone.query, alone.key = alone.query[1:2], alone.key[1:2]
    assert torch.equal(run([alone], [part], 40, 70, 1, "triton").values[0], once.values[1])


def test_memory_is_bounded(monkeypatch):
    """The scores of a tile are all that is ever made."""
    import sidelight.kernels.rows_reference as reference

    monkeypatch.setattr(reference, "_TILE_BYTES", 4 * 8 * 512 * 16)
    made = []
    probabilities = reference.probabilities

    def watched(*args):
        made.append(probabilities(*args))
        return made[-1]

    monkeypatch.setattr(reference, "probabilities", watched)
    layer = make_layer(1, 8, 8, 512, 512, 16, causal=True)
    result = run([layer], [Part(over_heads="mean")], 512, 512, 1, "reference")
    assert len(made) == 32
    assert max(tensor.numel() for tensor in made) <= 8 * 512 * 16
    assert_is(result, truth.columns([layer.probabilities()], over_heads="mean"), 1e-6)


BAD = [
    ("query", {"query": torch.zeros(1, 4, 3)}),
    ("query", {"query": torch.zeros(1, 4, 3, 8, dtype=torch.float64)}),
    ("key", {"key": torch.zeros(1, 3, 5, 8)}),
    ("key", {"key": torch.zeros(1, 2, 5, 16)}),
    ("key", {"key": torch.zeros(2, 2, 5, 8)}),
    ("scoring.mask", {"scoring": Scoring(1.0, mask=torch.ones(1, 1, 3, 4, dtype=torch.bool))}),
    ("scoring.mask", {"scoring": Scoring(1.0, mask=torch.ones(3, 5, dtype=torch.bool))}),
    ("scoring.bias", {"scoring": Scoring(1.0, bias=torch.ones(1, 3, 3, 5))}),
    ("scoring.bias", {"scoring": Scoring(1.0, bias=torch.ones(1, 1, 3, 5, dtype=torch.bool))}),
    ("scoring.window", {"scoring": Scoring(1.0, window=3)}),
    ("scoring.softcap", {"scoring": Scoring(1.0, softcap=0.0)}),
    ("part.heads", {"part": Part(heads=(4,))}),
    ("part.heads", {"part": Part(heads=())}),
    ("part.column", {"part": Part(column=1)}),
    ("part.columns", {"part": Part(heads=(1, 2), columns=(0,))}),
    ("part.over_heads", {"part": Part(over_heads="median")}),
    ("part.over_layers", {"part": Part(over_layers="sum")}),
    ("part.over_layers", {"part": Part(over_heads="sum", over_layers="sum")}),
    ("part.weights", {"part": Part(over_heads="max", weights=(1.0,) * 4)}),
    ("part.weights", {"part": Part(over_heads="mean", weights=(1.0,) * 3)}),
    ("part.weights", {"part": Part(over_heads="mean", weights=(1.0, 1.0, 1.0, -1.0))}),
    ("part.as_one", {"part": Part(over_heads="mean", over_layers="max", as_one=True)}),
    ("result", {"result": new_result(1, 2, 5, 4)}),
    ("result", {"result": new_result(1, 3, 4, 4)}),
    ("log_sum_exp", {"log_sum_exp": torch.zeros(1, 4, 2)}),
    ("impl", {"impl": "cuda"}),
]


@pytest.mark.parametrize(("name", "change"), BAD, ids=[f"{name} {i}" for i, (name, _) in enumerate(BAD)])
def test_what_does_not_fit_is_named(name, change):
    arguments = {"query": torch.zeros(1, 4, 3, 8), "key": torch.zeros(1, 2, 5, 8), "scoring": Scoring(1.0)}
    arguments |= {"result": new_result(1, 3, 5, 4), "part": Part()} | change
    with pytest.raises(ValueError, match=rf"^{name}:"):
        rows(**arguments)


def test_a_result_names_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"^encoding:"):
        new_result(1, 1, 1, 1, encoding="int4")
    with pytest.raises(ValueError, match=r"^top_k:"):
        new_result(1, 1, 1, 1, top_k=-1)
