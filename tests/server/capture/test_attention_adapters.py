"""Adapted attention modules: they compute what transformers' modules compute, and faults in them are found at load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from further_families import FURTHER_FAMILIES
from model_zoo import build_model
from sidelight.server.capture import FullRecorder, attention_adapters, record_to
from sidelight.server.models.loader import load
from transformers import AutoModelForCausalLM, MptConfig, MptForCausalLM

ADAPTED = ["bloom", "falcon", "falcon-alibi", "falcon-grouped", "mpt", "gptj"]
TOKENS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def _build(name: str, folder: Path) -> Path:
    return build_model(name, folder, FURTHER_FAMILIES[name])


@pytest.mark.parametrize("name", ADAPTED)
def test_logits_are_those_of_the_model_with_its_default_attention(name: str, folder: Path):
    """Falcon's default is SDPA, which adds ALiBi once. A capture does not change a bit."""
    path = _build(name, folder)
    ours: Any = load(path, packed=False).model
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(TOKENS).logits
        with record_to(None, padded=False):
            logits = ours(TOKENS, use_cache=False).logits
        with record_to(FullRecorder(), padded=False):
            recorded = ours(TOKENS, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(logits, recorded)


@pytest.mark.parametrize("name", ["bloom", "mpt", "falcon", "falcon-alibi"])
def test_an_adapted_layer_that_is_wrong_is_not_used(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The last layer's output shows in no row: only the logits tell. The model then runs as it was."""
    path = _build(name, folder)
    attend, calls = attention_adapters.attend, []

    def attend_wrongly(module: Any, *arguments: Any, **options: Any) -> Any:
        output, weights = attend(module, *arguments, **options)
        calls.append(module)
        return (output * 2 if module.layer_idx == 2 else output), weights

    monkeypatch.setattr(attention_adapters, "attend", attend_wrongly)
    loaded = load(path, packed=False)
    assert calls
    assert not loaded.attention_layers.captures_rows
    assert loaded.attention_layers.heads == {"decoder_self": (4, 4, 4)}
    assert not any("forward" in vars(module) for module in loaded.model.modules())


def test_mpt_rows_of_short_sequences_in_a_long_cache_are_exact():
    """ALiBi is near 0 for near keys, so that float32 keeps the digits of their scores."""
    config = MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=50, max_seq_len=2048)
    model = MptForCausalLM(config).transformer
    alibi = attention_adapters._DistanceTable(model.build_mpt_alibi_tensor(4, 2048))
    lengths = torch.tensor([3, 700, 2000])
    mask = (torch.arange(2000) < lengths[:, None])[:, None, None]
    bias = alibi(2000, mask)
    assert bias.shape == (3, 4, 1, 2000)
    for row, length in enumerate(lengths.tolist()):
        expected = model.build_mpt_alibi_tensor(4, length)[:, 0]
        assert torch.equal(bias[row, :, 0, :length], expected)
    assert alibi(2000, mask) is bias  # once for all layers of a step
    assert torch.equal(alibi(2000, mask[1:].clone())[1], bias[2])


def test_a_position_table_grows():
    table = attention_adapters._PositionTable(lambda keys: torch.arange(keys)[None, None, None].float())
    for keys in (1, 7, 5, 100):
        assert table(keys, None)[0, 0, 0].tolist() == list(range(keys))
