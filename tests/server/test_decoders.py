"""Steps without transformers' modules: the same numbers as the model's own code, for every family that has them."""

from __future__ import annotations

import pytest
import torch
from model_zoo import FAMILIES, build_model
from sidelight.kernels import Part, new_result
from sidelight.server import decoders
from sidelight.server.attention import Target, recording
from sidelight.server.models import LoadedModel, load
from transformers import AutoModelForSeq2SeqLM

KIN = ("marian", "bart", "mbart", "m2m100", "nllb", "pegasus")
SOURCES = {0: 5, 2: 4, 3: 5}  # by slot; 1 is idle


class Everything:
    """A recorder that keeps all rows of all sites."""

    def __init__(self) -> None:
        self.results = {}

    def targets(self, site, query, key):
        batch, heads, length, _ = query.shape
        self.results[site] = new_result(batch, length, key.shape[2], heads, device=query.device)
        return [Target(self.results[site], Part(), slice(0, length))]


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, LoadedModel]:
    """Models whose norms and biases are neither ones nor zeros, so that none can stand for another."""
    folder = tmp_path_factory.mktemp("kin")
    loaded = {}
    for name in KIN:
        path = build_model(name, folder)
        model = AutoModelForSeq2SeqLM.from_pretrained(path)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.add_(torch.randn_like(weight), alpha=0.3)
        model.save_pretrained(path)
        loaded[name] = load(path)
    return loaded


def steps(loaded: LoadedModel, *, directly: bool, are_even: bool):
    """What three steps give, and the rows of each: for slots at different lengths, with an idle one among them."""
    layout = loaded.layout
    assert layout is not None
    decoder, lengths = layout.decoder, dict.fromkeys(SOURCES, 5) if are_even else SOURCES
    assert decoder is not None
    layout.decoder = decoder if directly else None
    try:
        with torch.inference_mode():
            slots = layout.slots(4, 12)
            torch.manual_seed(0)
            layout.write_sources(torch.randn(3, 5, loaded.model.config.hidden_size), lengths, slots)
            longest = 0
            if not are_even:
                longest = 2
                with recording(None, padded=False):
                    slots.begin_reading(2, 0, 2, 4)
                    layout.read(torch.tensor([[7, 8]]), slots)
                slots.own.lengths[2] = 2
            for step in range(3):
                everything = Everything()
                slots.begin_step(slice(0, 4), longest + step + 1, 5, are_even=are_even)
                # The padding, too: M2M100 gives it no position.
                tokens = torch.tensor([[9 + step], [4], [loaded.model.config.pad_token_id], [30 * step + 5]])
                with recording(everything, padded=False):
                    made = layout.step(tokens, slots)
                slots.own.lengths[[0, 2, 3]] += 1
                used = [0, 2, 3]
                yield made[used], {site: result.values[used] for site, result in everything.results.items()}
    finally:
        layout.decoder = decoder


@pytest.mark.parametrize("are_even", [False, True])
@pytest.mark.parametrize("name", KIN)
def test_a_step_is_the_models_own(name, are_even, families):
    for directly, by_model in zip(
        *(steps(families[name], directly=how, are_even=are_even) for how in (True, False)), strict=True
    ):
        torch.testing.assert_close(directly[0], by_model[0], atol=1e-5, rtol=1e-5)
        assert len(directly[1]) == 6
        assert directly[1].keys() == by_model[1].keys()
        for site, rows in directly[1].items():
            torch.testing.assert_close(rows, by_model[1][site], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_who_has_one(name, tmp_path):
    layout = load(build_model(name, tmp_path)).layout
    assert (layout is not None and layout.decoder is not None) == (name in KIN)


@pytest.mark.parametrize("name", ["marian", "m2m100"])
def test_one_that_differs_is_not_used(name, tmp_path, monkeypatch, caplog):
    wrong = {layer: not before for layer, before in decoders._NORMALIZES_INPUT.items()}
    monkeypatch.setattr(decoders, "_NORMALIZES_INPUT", wrong)
    layout = load(build_model(name, tmp_path)).layout
    assert layout is not None
    assert layout.decoder is None
    assert "run by its own code" in caplog.text


def test_a_compiled_step_has_none(tmp_path):
    layout = load(build_model("marian", tmp_path), compiled=True).layout
    assert layout is not None
    assert layout.decoder is None
