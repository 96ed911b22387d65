"""Sources and steps without transformers' modules: the same numbers as the model's own code, for every such family."""

from __future__ import annotations

import pytest
import torch
from model_zoo import FAMILIES, build_model
from sidelight.kernels.cpu.program import is_supported
from sidelight.server.capture.attention_function import record_to
from sidelight.server.capture.attention_layers import _Everything
from sidelight.server.models import bart_backend as direct
from sidelight.server.models.bart_backend import DirectDecoder
from sidelight.server.models.bart_cpu_backend import ProgrammedDecoder
from sidelight.server.models.loader import LoadedModel, load
from transformers import AutoModelForSeq2SeqLM

KIN = ("marian", "bart", "mbart", "m2m100", "nllb", "pegasus")
SOURCES = {0: 5, 2: 4, 3: 5}  # by slot; 1 is idle


@pytest.fixture(scope="module", params=["programs", "modules"])
def families(request, tmp_path_factory) -> dict[str, LoadedModel]:
    """Models whose norms and biases are neither ones nor zeros, so that none can stand for another.

    Run as programs, and layer by layer.
    """
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
        loaded[name] = load(path, packed=request.param == "programs")
        decoder = ProgrammedDecoder if request.param == "programs" and is_supported() else DirectDecoder
        assert type(loaded[name].backend.decoder) is decoder
    return loaded


def steps(loaded: LoadedModel, *, directly: bool, are_even: bool):
    """What three steps give, and the rows of each: for slots at different lengths, with an idle one among them."""
    backend = loaded.backend
    assert backend is not None
    decoder, lengths = backend.decoder, dict.fromkeys(SOURCES, 5) if are_even else SOURCES
    assert decoder is not None
    backend.decoder = decoder if directly else None
    try:
        with torch.inference_mode():
            slots = backend.new_kv_cache(4, 12)
            torch.manual_seed(0)
            backend.store_sources(torch.randn(3, 5, loaded.model.config.hidden_size), lengths, slots)
            longest = 0
            if not are_even:
                longest = 2
                with record_to(None, padded=False):
                    slots.begin_prefill(2, 0, 2, 4)
                    backend.prefill(torch.tensor([[7, 8]]), slots)
                slots.own.lengths[2] = 2
            for step in range(3):
                everything = _Everything()
                slots.begin_decode(slice(0, 4), longest + step + 1, 5, are_even=are_even)
                # The padding, too: M2M100 gives it no position.
                tokens = torch.tensor([[9 + step], [4], [loaded.model.config.pad_token_id], [30 * step + 5]])
                with record_to(everything, padded=False):
                    made = backend.decode(tokens, slots)
                slots.own.lengths[[0, 2, 3]] += 1
                used = [0, 2, 3]
                yield made[used], {site: result.values[used] for site, result in everything.results.items()}
    finally:
        backend.decoder = decoder


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


@pytest.mark.parametrize("name", KIN)
def test_sources_are_read_as_by_the_model(name, families):
    """Alone and padded, whatever stands there for padding."""
    backend, encoder = families[name].backend, families[name].model.get_encoder()
    assert backend is not None
    assert backend.encoder is not None
    sources = [[5, 9, 7, 30, 2], [11], [8, 4, 21]]
    with torch.inference_mode():
        expected = [encoder(input_ids=torch.tensor([source])).last_hidden_state[0] for source in sources]
        for source, alone in zip(sources, expected, strict=True):
            made = backend.encode(torch.tensor([source]), [len(source)])
            torch.testing.assert_close(made[0], alone, atol=1e-5, rtol=1e-5)
        padded = torch.tensor([[*source, *[1] * (5 - len(source))] for source in sources])
        for made, alone in zip(backend.encode(padded, [*map(len, sources)]), expected, strict=True):
            torch.testing.assert_close(made[: len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_who_is_run_directly(name, tmp_path, caplog):
    backend = load(build_model(name, tmp_path)).backend
    assert "run by its own code" not in caplog.text  # no fault: a family that is not known here
    for part in ("encoder", "decoder"):
        assert (backend is not None and getattr(backend, part) is not None) == (name in KIN)


@pytest.mark.parametrize("name", ["marian", "m2m100"])
def test_what_differs_is_not_used(name, tmp_path, monkeypatch, caplog):
    output, input_ = direct._NORMALIZES_OUTPUT, direct._NORMALIZES_INPUT
    monkeypatch.setattr(direct, "_NORMALIZES_OUTPUT", input_)
    monkeypatch.setattr(direct, "_NORMALIZES_INPUT", output)
    backend = load(build_model(name, tmp_path)).backend
    assert backend is not None
    assert backend.encoder is None
    assert backend.decoder is None
    assert "run by its own code" in caplog.text


def test_a_clamped_encoder_is_the_models_own(tmp_path):
    """In float16, transformers looks for numbers that are too great."""
    backend = load(build_model("bart", tmp_path), dtype="float16").backend
    assert backend is None or backend.encoder is None


def test_a_compiled_step_is_the_models_own(tmp_path):
    backend = load(build_model("marian", tmp_path), compiled=True).backend
    assert backend is not None
    assert backend.decoder is None
