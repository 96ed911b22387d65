"""A method is one class: a toy of some lines is served; and which models have which methods."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from harness import CROSS, request, serving, steps_of, stub
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from method_truth import Truth
from model_zoo import SOURCE, build_model
from sidelight.client import Capture, Client, Decoding, InvalidArgumentError, ResourceExhaustedError
from sidelight.server.api import enums
from sidelight.server.api.validation import methods as method_validation
from sidelight.server.capture import Method
from sidelight.server.capture.methods import METHODS, value_norms
from sidelight.server.models.loader import load

TOY = 77


class Toy(Method):
    """Probabilities times the greatest number of each value."""

    name: ClassVar[str] = "toy"
    has_factors: ClassVar[bool] = True

    @classmethod
    def for_model(cls, probed):
        return cls() if probed.modules else None

    def factors(self, layer_key, value):  # noqa: ARG002
        return value.float().amax(-1)


def test_a_method_of_one_class_is_served(monkeypatch, zoo_folder):
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setitem(enums.METHODS, TOY, "toy")
    monkeypatch.setitem(enums.METHODS.numbers, "toy", TOY)
    loaded = load(build_model("marian", zoo_folder))
    assert isinstance(loaded.attention_layers.methods["toy"], Toy)
    weights, toy = request(SOURCE, [CROSS]), request(SOURCE, [CROSS])
    toy.capture.method = TOY
    with serving(loaded) as address, stub(address) as service:
        plain, multiplied = (list(service.Attribute(message, timeout=60)) for message in (weights, toy))
    assert multiplied[0].started.capture.method == TOY
    arrays = [
        np.stack(
            [np.frombuffer(step.cross.values, "<f4").reshape(tuple(step.cross.shape)) for step in steps_of(answer)]
        )
        for answer in (plain, multiplied)
    ]
    factors = arrays[1] / arrays[0]  # [steps, positions, layers, heads]
    # Each position, layer and head has one factor, the same in each step; and the factors differ.
    seen = arrays[0].min(0) > 1e-6
    np.testing.assert_allclose(factors.max(0)[seen], factors.min(0)[seen], rtol=1e-4)
    assert np.ptp(factors) > 0.1


def test_a_model_whose_projections_are_not_found_has_no_value_norms(monkeypatch, zoo_folder):
    monkeypatch.setattr(value_norms, "_TOLERANCE", -1.0)
    loaded = load(build_model("llama", zoo_folder))
    assert list(loaded.attention_layers.methods) == ["weights", "rollout"]


def test_whole_matrices_give_rollout_and_no_value_norms(zoo, zoo_folder):
    with serving(zoo("fsmt")) as address, Client(address) as client:
        (model,) = client.list_models()
        assert model.methods == ("weights", "rollout")
        with pytest.raises(InvalidArgumentError) as raised:
            client.attribute(SOURCE, capture=Capture(method="value_norms")).result()
        assert raised.value.field == "capture.method"
        kinds = ("cross", "decoder_self", "encoder_self")
        decoding = Decoding(max_new_tokens=5, ignore_eos=True)
        options = {"prefix": "Der Hund", "decoding": decoding, "timeout": 60}
        result = client.attribute(SOURCE, capture=Capture(kinds, method="rollout"), **options).result()
        left = client.attribute(SOURCE, capture=Capture(kinds, special_tokens="renormalize"), **options).result()
    target = [token.id for token in (*result.context, *result.steps)][:-1]
    source = [token.id for token in result.source]
    truth = Truth(build_model("fsmt", zoo_folder), source, target, torch.float32)  # it has masks of float32's least
    first = len(result.context) - 1
    cross = truth.rollout("cross")[:, first:]
    np.testing.assert_allclose(result.cross, cross.transpose(2, 1, 0), atol=1e-5)
    np.testing.assert_allclose(result.encoder_self, truth.rollout("encoder_self").transpose(1, 2, 0), atol=1e-5)
    special = np.array([token.special for token in left.source])
    assert not left.cross[special].any()
    np.testing.assert_allclose(left.cross.sum(0), 1, atol=1e-5)
    assert left.special_shares["cross"].shape == left.cross.shape[1:]
    assert left.special_shares["encoder_self"].shape == left.encoder_self.shape[:1] + left.encoder_self.shape[2:]


def test_a_rollout_that_would_keep_too_much_is_refused_before_any_work(bundled_server, monkeypatch):
    monkeypatch.setattr(method_validation, "MAX_STATE_BYTES", 10_000)
    with Client(bundled_server) as client, pytest.raises(ResourceExhaustedError) as raised:
        client.attribute(SOURCE, capture=Capture(method="rollout")).result()
    assert raised.value.field == "capture.method"


REDUCTIONS = st.sampled_from(["mean", "max", "min", "sum", "prod", "absmax", "l2"])


@st.composite
def captures(draw):
    """Any capture of the bundled model with value norms."""
    pairs = draw(st.none() | st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, unique=True))
    over_heads = draw(st.none() | REDUCTIONS)
    return {
        "heads": pairs,
        "layers": None if pairs else draw(st.none() | st.permutations([0, 2])),
        "over_heads": over_heads,
        "over_layers": draw(st.none() | REDUCTIONS) if over_heads and not pairs else None,
        "row": draw(st.sampled_from(["predicting", "reading"])),
        "special_tokens": draw(st.sampled_from(["keep", "renormalize"])),
    }


REDUCE = {
    "mean": np.mean, "max": np.max, "min": np.min, "sum": np.sum, "prod": np.prod, "absmax": np.max,
    "l2": lambda x, axis: np.sqrt((x**2).sum(axis)),
}  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(captures(), st.sampled_from(["float32", "float16", "uint8"]), st.sampled_from([0, 3]), st.booleans())
def test_any_capture_reduces_and_encodes_the_norms(bundled_server, capture, encoding, top_k, is_given):
    """From the norms of all layers and heads, which are compared with the paper elsewhere."""
    target = {"target": "Ein Hund schläft."} if is_given else {"decoding": Decoding(max_new_tokens=5)}
    kinds = ("cross", "decoder_self", "encoder_self")
    with Client(bundled_server) as client:
        whole, result = (
            client.attribute("A dog sleeps.", capture=Capture(kinds, method="value_norms", **each), **target).result()
            for each in (
                {"row": capture["row"], "special_tokens": capture["special_tokens"]},
                {**capture, "encoding": encoding, "top_k": top_k},
            )
        )
    for kind in kinds:
        expected = np.nan_to_num(getattr(whole, kind)).astype(np.float64)
        shares = whole.special_shares.get(kind)
        axis = 1 if kind == "encoder_self" else 0
        if capture["heads"]:
            index = tuple(zip(*capture["heads"], strict=True))
            expected = expected[:, :, index[0], index[1]]
            shares = None if shares is None else shares[:, index[0], index[1]]
        elif capture["layers"]:
            expected = expected[:, :, capture["layers"]]
            shares = None if shares is None else shares[:, capture["layers"]]
        for word in (capture["over_heads"], capture["over_layers"]):
            if word:
                expected = REDUCE[word](expected, -1)
                shares = None if shares is None else shares.mean(-1)
        got = np.nan_to_num(getattr(result, kind)).astype(np.float64)
        if top_k:
            assert ((got != 0).sum(axis) <= top_k).all()
            expected = np.where(got != 0, expected, got)
        tolerance = {"float32": 1e-5, "float16": 1e-3, "uint8": 3e-3}[encoding] * max(1, np.abs(expected).max())
        np.testing.assert_allclose(got, expected, atol=tolerance, rtol=1e-4)
        if shares is not None:
            np.testing.assert_allclose(result.special_shares[kind], shares, atol=1e-5)
