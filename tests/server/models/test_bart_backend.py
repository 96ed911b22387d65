"""BART-style backends compute the numbers of transformers' modules: logits, attention rows and encoder outputs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES, build_model
from sidelight.kernels.cpu import is_supported
from sidelight.server.capture import FullRecorder, record_to
from sidelight.server.models import Backend, BackendConfig, LoadedModel, bart_modules, load
from sidelight.server.models.bart_backend import BartBackend
from sidelight.server.models.bart_cpu_backend import BartCpuBackend
from sidelight.server.models.transformers_backend import TransformersBackend
from transformers import AutoModelForSeq2SeqLM

BART_STYLE = ("marian", "bart", "mbart", "m2m100", "nllb", "pegasus")
SOURCE_LENGTHS = {0: 5, 2: 4, 3: 5}  # by slot; slot 1 is idle


@pytest.fixture(scope="module", params=["programs", "layers"])
def models(request, tmp_path_factory) -> dict[str, LoadedModel]:
    """Models whose norms and biases are neither ones nor zeros, so that no norm or bias can stand for another."""
    folder = tmp_path_factory.mktemp("bart-style")
    expected = BartCpuBackend if request.param == "programs" and is_supported() else BartBackend
    loaded = {}
    for name in BART_STYLE:
        path = build_model(name, folder)
        model = AutoModelForSeq2SeqLM.from_pretrained(path)
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight.add_(torch.randn_like(weight), alpha=0.3)
        model.save_pretrained(path)
        loaded[name] = load(path, packed=request.param == "programs")
        assert type(loaded[name].backend) is expected
    return loaded


def by_modules(loaded: LoadedModel) -> TransformersBackend:
    """The backend of the same model that calls transformers' modules."""
    assert loaded.backend is not None
    return TransformersBackend(loaded.model, BackendConfig(64, 64), loaded.backend.lm_head)


def steps(
    loaded: LoadedModel, backend: Backend, *, is_uniform: bool
) -> Iterator[tuple[torch.Tensor, dict[object, torch.Tensor]]]:
    """The hidden states and the attention rows of three steps: slots at different lengths, and an idle slot."""
    lengths = dict.fromkeys(SOURCE_LENGTHS, 5) if is_uniform else SOURCE_LENGTHS
    used = [*SOURCE_LENGTHS]
    with torch.inference_mode():
        cache = backend.new_kv_cache(4, 12)
        torch.manual_seed(0)
        backend.store_sources(torch.randn(3, 5, loaded.model.config.hidden_size), lengths, cache)
        longest = 0
        if not is_uniform:
            longest = 2
            with record_to(None, padded=False):
                cache.begin_prefill(2, 0, 2, 4)
                backend.prefill(torch.tensor([[7, 8]]), cache)
            assert cache.own.lengths[:, 0].tolist() == [0, 0, 2, 0]
        for step in range(3):
            recorder = FullRecorder()
            cache.begin_decode(slice(0, 4), longest + step + 1, 5, is_uniform=is_uniform)
            # The padding token, too: M2M100 gives it no position.
            tokens = torch.tensor([[9 + step], [4], [loaded.model.config.pad_token_id], [30 * step + 5]])
            with record_to(recorder, padded=False):
                hidden = backend.decode(tokens, cache)
            cache.advance(torch.tensor(used))
            yield hidden[used], {key: result.values[used] for key, result in recorder.results.items()}


@pytest.mark.covering(1)
@pytest.mark.parametrize("is_uniform", [False, True])
@pytest.mark.parametrize("name", BART_STYLE)
def test_a_step_is_the_models_own(name, is_uniform, models):
    loaded = models[name]
    ours, theirs = (steps(loaded, backend, is_uniform=is_uniform) for backend in (loaded.backend, by_modules(loaded)))
    for (hidden, rows), (expected_hidden, expected_rows) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(hidden, expected_hidden, atol=1e-5, rtol=1e-5)
        assert len(rows) == 6
        assert rows.keys() == expected_rows.keys()
        for key, values in rows.items():
            torch.testing.assert_close(values, expected_rows[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", BART_STYLE)
def test_an_encoder_is_the_models_own(name, models):
    """For sources alone and padded, whatever token stands at the padding."""
    backend, encoder = models[name].backend, models[name].model.get_encoder()
    assert backend is not None
    sources = [[5, 9, 7, 30, 2], [11], [8, 4, 21]]
    with torch.inference_mode():
        expected = [encoder(input_ids=torch.tensor([source])).last_hidden_state[0] for source in sources]
        for source, alone in zip(sources, expected, strict=True):
            hidden = backend.encode(torch.tensor([source]), [len(source)])
            torch.testing.assert_close(hidden[0], alone, atol=1e-5, rtol=1e-5)
        padded = torch.tensor([[*source, *[1] * (5 - len(source))] for source in sources])
        for hidden, alone in zip(backend.encode(padded, [*map(len, sources)]), expected, strict=True):
            torch.testing.assert_close(hidden[: len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", slow_except(sorted(FAMILIES), {"marian", "mbart", "t5", "gpt2"}))
def test_the_backend_of_each_family(name, tmp_path, caplog):
    backend = load(build_model(name, tmp_path), packed=False).backend
    assert "is not run by" not in caplog.text  # a family that a backend does not know is no fault
    assert isinstance(backend, BartBackend) == (name in BART_STYLE)


@pytest.mark.parametrize("name", ["marian", "m2m100"])
def test_a_backend_with_other_logits_is_not_taken(name, tmp_path, monkeypatch, caplog):
    pre_norm, post_norm = bart_modules._PRE_NORM, bart_modules._POST_NORM
    monkeypatch.setattr(bart_modules, "_PRE_NORM", post_norm)
    monkeypatch.setattr(bart_modules, "_POST_NORM", pre_norm)
    backend = load(build_model(name, tmp_path)).backend
    assert type(backend) is TransformersBackend
    assert "is not run by BartBackend: its logits are " in caplog.text


def test_an_encoder_in_float16_is_run_by_its_own_code(tmp_path):
    """There transformers clamps numbers that are too great."""
    backend = load(build_model("bart", tmp_path), dtype="float16").backend
    assert type(backend) is TransformersBackend
