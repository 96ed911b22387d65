"""A model is loaded for the device and the length that are asked for, or the error says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as tf
from damaged_checkpoints import refusal
from harness import serving, wait_until
from model_zoo import Family, build_model, decoder_only
from sidelight.client import Client, Decoding, Greedy
from sidelight.server.models import loader
from sidelight.server.models.loader import ModelError, load


@pytest.mark.parametrize(
    "device",
    [
        "foo",
        "",
        "CPU",
        "cpu:3",
        "cpu:00",
        "cpu:-1",
        "meta",
        "cuda:",
        "cuda:x",
        "cuda:00",
        "cuda:01",
        "cuda:9999",
        "mps",
    ],
)
def test_the_error_of_an_unknown_device_lists_the_devices(device):
    with pytest.raises(ModelError) as raised:
        load(device=device)
    assert str(raised.value) == f'cannot use device "{device}": it must be auto, cpu, cuda, or a GPU such as cuda:1'


def test_a_missing_gpu_is_an_error(monkeypatch):
    with pytest.raises(ModelError, match=r"^cannot use device cuda:99: "):
        load(device="cuda:99")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelError, match=r"^cannot use device cuda:2: torch finds cuda:0 to cuda:1$"):
        load(device="cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"^cannot use device cuda: torch finds no GPU that it can use$"):
        load(device="cuda")


def test_too_little_memory_is_an_error(copy_model, monkeypatch):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("sidelight.server.models.loader.find_attention_layers", fail)
    monkeypatch.delattr("sidelight.server.models.loader.model_error")  # no field is looked for
    assert refusal(copy_model("gpt2")) == "it needs more memory than there is on cpu"


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_an_error(name):
    with pytest.raises(ModelError, match=r"^the model's name is empty: "):
        load(name)


@pytest.mark.parametrize(("name", "least"), [("bundled", 2), ("nllb", 3), ("gpt2", 2), ("llama", 2), ("fsmt", 2)])
def test_a_length_that_no_text_has_is_refused(copy_model, name, least):
    path = copy_model(name)
    assert f"max_length {least - 1} is too few" in refusal(path, max_length=least - 1)
    load(path, packed=False, max_length=least)


def test_a_damaged_checkpoint_is_said_in_a_line(tmp_path):
    path = build_model("marian", tmp_path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load"):
        load(path)


def test_separate_vocabularies_are_refused(tmp_path):
    path = build_model("fsmt", tmp_path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"tgt_vocab_size": 1234}), encoding="utf-8")
    with pytest.raises(ModelError, match="cannot load"):
        load(path)


def test_the_first_positions_of_longrope_stay_where_they_are(tmp_path):
    """Of a longer text Phi-3 turns all positions otherwise, also those of keys in the cache."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    options = {"rope_scaling": {"type": "longrope", **factors}, "original_max_position_embeddings": 40}
    phi = Family(decoder_only(tf.Phi3Config, tf.Phi3ForCausalLM, **options), is_encoder_decoder=False)
    loaded = load(build_model("phi3", tmp_path, phi))
    assert loaded.model.config.max_position_embeddings > 40
    assert (loaded.max_source_tokens, loaded.max_target_tokens) == (40, 40)


def test_a_decoder_that_looks_ahead_is_refused(tmp_path):
    bert = Family(decoder_only(tf.BertConfig, tf.BertLMHeadModel, is_decoder=False), is_encoder_decoder=False)
    with pytest.raises(ModelError, match=r"^cannot serve .*: its decoder looks at tokens that come later"):
        load(build_model("bert", tmp_path, bert))


def test_a_real_llama_tells_a_story(bundled):
    """stories260K is a trained model with grouped heads. A machine without the model skips the test."""
    path = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
    if not path.exists():
        pytest.skip("../shared is not here")
    with serving(load(path), bundled) as address, Client(address) as client:
        decoding = Decoding(Greedy(), max_new_tokens=60)
        result = client.attribute("Once upon a time", decoding=decoding, timeout=120).result()
        assert result.text.startswith(", there was a little girl named Lily.")
        assert result.decoder_self.shape == (5 + 60, 60, 5, 8)
        assert sorted(model.name for model in client.list_models()) == ["stories260K", "tatoeba-en-de"]
        assert client.attribute("A dog.", model="tatoeba-en-de", timeout=60).result().text


def test_the_log_says_that_kernels_are_compiled(monkeypatch, caplog):
    """Before it is done: a busy machine takes minutes."""
    caplog.set_level("INFO")
    monkeypatch.setattr(loader, "_LONG", 0.05)
    monkeypatch.setattr(loader, "is_supported", lambda: wait_until(lambda: "compiling kernels" in caplog.text) or True)
    loader._compile_cpu_kernels()
    assert "they are kept for the next time" in caplog.text
