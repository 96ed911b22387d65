"""A backend is one class in the registry, and the verification at load decides whether the class is taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from model_zoo import build_model
from sidelight.server.capture import AttentionLayers, FullRecorder, record_to
from sidelight.server.capture.context import context
from sidelight.server.models import BackendConfig, UnsupportedModelError, load, loader
from sidelight.server.models.backend_selection import BACKENDS, Verification, select_backend
from sidelight.server.models.transformers_backend import TransformersBackend
from transformers import PreTrainedModel

CONFIG = BackendConfig(32, 32)


class NewBackend(TransformersBackend):
    """A backend that computes the model's own logits."""


class WrongBackend(NewBackend):
    """A backend whose hidden states are not the model's."""

    def _decode(self, tokens, cache):
        return super()._decode(tokens, cache) * 1.01


class BackendWithoutMask(NewBackend):
    """A backend that is wrong for the shorter source of a batch alone."""

    def encode(self, ids, lengths):
        return super().encode(ids, [ids.shape[1]] * len(lengths))


class NanBackend(NewBackend):
    """A backend whose second row is NaN."""

    def _decode(self, tokens, cache):
        hidden = super()._decode(tokens, cache).clone()
        hidden[1] = torch.nan
        return hidden


class BackendOfOneRow(NewBackend):
    """A backend that returns the first row alone, which torch would broadcast."""

    def _decode(self, tokens, cache):
        return super()._decode(tokens, cache)[:1]


class BackendWithoutRows(NewBackend):
    """A backend that computes its attention and forgets to record it."""

    def _decode(self, tokens, cache):
        with record_to(None, padded=False):
            return super()._decode(tokens, cache)


class BackendWithWrongRows(NewBackend):
    """A backend that records the heads of each layer in another order."""

    def _decode(self, tokens, cache):
        hidden = super()._decode(tokens, cache)
        for tensors in context.recorder.results.values() if isinstance(context.recorder, FullRecorder) else ():
            tensors.values.copy_(tensors.values.flip(-1))
        return hidden


class RaisingBackend(NewBackend):
    """A backend whose code meets a model for which it was not written."""

    def _decode(self, *_):
        raise RuntimeError("shapes do not match")


class BackendThatCannotBeMade(NewBackend):
    """A backend whose constructor meets such a model."""

    def __init__(self, *_arguments):
        raise AttributeError("no attribute 'layers'")


class BackendForOthers(NewBackend):
    """A backend for other families."""

    @classmethod
    def supports(cls, model):  # noqa: ARG003
        return False


class BackendForOtherParts(NewBackend):
    """A backend that finds a part that it does not know."""

    def __init__(self, *_arguments):
        raise UnsupportedModelError("an activation of another kind")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> tuple[PreTrainedModel, AttentionLayers]:
    loaded = load(build_model("marian", tmp_path_factory.mktemp("zoo")), packed=False)
    assert loaded.backend is not None
    assert loaded.backend.lm_head is not None
    loaded.backend.lm_head.detach()
    return loaded.model, loaded.attention_layers


@pytest.fixture
def debug_log(caplog) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="sidelight"):
        yield caplog


def hooks_of(model: PreTrainedModel) -> int:
    return len(model.get_output_embeddings()._forward_pre_hooks)


def test_a_right_backend_is_taken(model, debug_log):
    """Before all that stand behind it."""
    backend = select_backend(*model, CONFIG, backends=(NewBackend, *BACKENDS))
    assert type(backend) is NewBackend
    assert "marian is run by NewBackend" in debug_log.text
    assert not [record for record in debug_log.records if record.levelno >= logging.INFO]
    assert backend.lm_head is not None
    backend.lm_head.detach()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (WrongBackend, "its logits are "),
        (BackendWithoutMask, "its logits are "),
        (NanBackend, "its logits are nan from the model's own"),
        (BackendOfOneRow, "logits have the shape (1, "),
        (BackendWithoutRows, "it records no rows of "),
        (BackendWithWrongRows, "its attention rows of "),
        (RaisingBackend, "shapes do not match"),
        (BackendThatCannotBeMade, "no attribute 'layers'"),
    ],
)
def test_a_wrong_backend_is_refused(wrong, reason, model, caplog):
    backend = select_backend(*model, CONFIG, backends=(wrong, NewBackend))
    assert type(backend) is NewBackend
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith(f"marian is not run by {wrong.__name__}: {reason}")
    assert backend.lm_head is not None
    backend.lm_head.detach()


@pytest.mark.parametrize("other", [BackendForOthers, BackendForOtherParts])
def test_a_backend_for_other_models_is_passed_over_in_silence(other, model, caplog):
    backend = select_backend(*model, CONFIG, backends=(other, NewBackend))
    assert type(backend) is NewBackend
    assert not caplog.records
    assert backend.lm_head is not None
    backend.lm_head.detach()


@pytest.mark.parametrize(
    ("backends", "reason"),
    [
        ((BackendForOthers,), "no backend supports it"),
        ((BackendForOtherParts,), "an activation of another kind"),
        ((RaisingBackend,), "shapes do not match"),
    ],
)
def test_without_a_backend_requests_run_one_by_one(backends, reason, model, caplog):
    before = hooks_of(model[0])
    assert select_backend(*model, CONFIG, backends=backends) is None
    assert f"requests of marian run one by one: {reason}" in caplog.text
    assert hooks_of(model[0]) == before


def test_no_backend_without_rows(model):
    layers = AttentionLayers(model[1].heads, captures_rows=False, methods={})
    assert select_backend(model[0], layers, CONFIG, backends=(NewBackend,)) is None


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_logits_that_a_model_caps_are_not_those_of_its_last_layer(dtype, tmp_path, caplog):
    """Gemma 2 does more to its logits than its last layer. In int8 the cap is not taken for a rounding."""
    with caplog.at_level(logging.INFO):
        backend = load(build_model("gemma2", tmp_path), dtype=dtype).backend
    assert type(backend) is TransformersBackend
    assert backend.lm_head is None
    assert "the LM head of gemma2 does not run apart from the model: its logits are " in caplog.text


def test_a_model_whose_own_forward_pass_fails_has_no_backend(model, monkeypatch, caplog):
    monkeypatch.setattr(Verification, "_own_logits", lambda *_: [][0])
    assert select_backend(*model, CONFIG) is None
    assert "requests of marian run one by one: list index out of range" in caplog.text


def test_the_loader_asks_every_backend_for_panels(monkeypatch, tmp_path):
    """A backend that reads panels need not be named outside the registry."""

    class BackendOfPanels(NewBackend):
        @classmethod
        def reads_panels(cls, model):
            asked.append(model)
            return False

    asked = []
    monkeypatch.setattr(loader, "BACKENDS", (BackendOfPanels,))
    loaded = load(build_model("gpt2", tmp_path))
    assert asked == [loaded.model]
