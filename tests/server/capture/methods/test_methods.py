"""Value norms, rollout and renormalized rows of served models, against the formulas in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness import serving
from method_truth import Truth, renormalized
from model_zoo import FAMILIES, build_model
from sidelight.client import Capture, Client, Decoding
from sidelight.server.models.loader import bundled_model, load

TRAINED = Path(__file__).parents[5] / "shared" / "models" / "stories260K"
SOURCE, GIVEN = "Where did you buy that old book?", "Wo hast du das Buch gekauft?"
KINDS = ("cross", "decoder_self", "encoder_self")


# Trained: the bundled model, by CPU programs; a llama with grouped heads. Random: grouped heads with windows; biases
# instead of positions; heads of another width than the model divided by their number.
@pytest.fixture(
    scope="module",
    params=[
        "bundled",
        "stories260K",
        "gemma3",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "mbart")),
    ],
)
def served(request, zoo, zoo_folder):
    if request.param == "stories260K" and not TRAINED.exists():
        pytest.skip("../shared is not here")
    path = {"bundled": bundled_model(), "stories260K": TRAINED}.get(request.param)
    path = path or build_model(request.param, zoo_folder)
    loaded = load(path) if request.param == "stories260K" else zoo(request.param)
    with serving(loaded) as address, Client(address) as client:
        yield path, loaded, client, FAMILIES.get(request.param)


def attribute(served, given, **capture):
    _, loaded, client, family = served
    options = {"target": GIVEN} if given else {"decoding": Decoding(max_new_tokens=9, ignore_eos=True)}
    if family is not None:
        options |= {"source_language": family.source_language, "target_language": family.target_language}
    kinds = [kind for kind in KINDS if kind in loaded.kinds]
    return client.attribute(SOURCE, capture=Capture(kinds=kinds, **capture), timeout=120, **options).result()


def truth_of(served, result, row="predicting"):
    """The model's own numbers over all tokens that the decoder has read, and the queries of the steps."""
    target = [token.id for token in (*result.context, *result.steps)]
    first = len(result.context) - (row == "predicting")
    queries = slice(first, first + len(result.steps))
    return Truth(served[0], [token.id for token in result.source], target[: queries.stop]), queries


def rows_of(result, kind):
    """Rows as `[..., queries, keys]`, with the axes after positions in front."""
    array = getattr(result, kind)
    array = array.swapaxes(0, 1) if kind != "encoder_self" else array  # [queries, positions, ...]
    return np.moveaxis(np.nan_to_num(array), (0, 1), (-2, -1))


def special_of(result, kind):
    tokens = result.source if kind != "decoder_self" else (*result.context, *result.steps)
    return np.array([token.special for token in tokens])


def assert_near(rows, expected, queries, kind):
    expected = expected if kind == "encoder_self" else expected[..., queries, :]
    keys = min(rows.shape[-1], expected.shape[-1])  # the position of the last step's token may be unread
    assert not rows[..., keys:].any()
    np.testing.assert_allclose(rows[..., :keys], expected[..., :keys], atol=2e-6 * max(1, expected.max()), rtol=2e-5)


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("special_tokens", ["keep", "renormalize"])
def test_value_norms_are_the_papers(served, given, special_tokens):
    result = attribute(served, given, method="value_norms", special_tokens=special_tokens)
    truth, queries = truth_of(served, result)
    for kind in result.layouts:
        left_out = special_of(result, kind) if special_tokens == "renormalize" else None
        left_out = None if left_out is None else left_out[: truth.matrices[kind][0].shape[2]]
        assert_near(rows_of(result, kind), truth.value_norms(kind, left_out), queries, kind)


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("row", ["predicting", "reading"])
def test_rollout_is_the_papers(served, given, row):
    result = attribute(served, given, method="rollout", row=row)
    truth, queries = truth_of(served, result, row)
    for kind in result.layouts:
        assert result.layouts[kind].axes == ("layer",)
        assert_near(rows_of(result, kind), truth.rollout(kind), queries, kind)
    if "cross" in result.layouts:
        total = np.nansum(result.cross, 0) + np.nansum(result.decoder_self, 0)
        np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.covering(1)
@pytest.mark.parametrize("given", [False, True], ids=["decoded", "given"])
@pytest.mark.parametrize("over_heads", [None, "mean"])
def test_rows_without_special_tokens_are_the_softmax_over_the_others(served, given, over_heads):
    result = attribute(served, given, special_tokens="renormalize", over_heads=over_heads)
    truth, queries = truth_of(served, result)
    for kind in result.layouts:
        matrices = np.stack(truth.matrices[kind])
        rows, shares = renormalized(matrices, special_of(result, kind)[: matrices.shape[-1]])
        if over_heads:
            rows, shares = rows.mean(1), shares.mean(1)
        assert_near(rows_of(result, kind), rows, queries, kind)
        shares = shares if kind == "encoder_self" else shares[..., queries]
        np.testing.assert_allclose(np.moveaxis(result.special_shares[kind], 0, -1), shares, atol=1e-5)


def test_a_rollout_leaves_out_special_tokens_at_its_end(served):
    kept, left = (attribute(served, False, method="rollout", special_tokens=word) for word in ("keep", "renormalize"))
    for kind in left.layouts:
        rows, shares = renormalized(rows_of(kept, kind).astype(np.float64), special_of(left, kind))
        np.testing.assert_allclose(rows_of(left, kind), rows, atol=1e-5)
        np.testing.assert_allclose(np.moveaxis(left.special_shares[kind], 0, -1), shares, atol=1e-6)
    assert not kept.special_shares
