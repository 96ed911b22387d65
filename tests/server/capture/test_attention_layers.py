"""The comparison of attention rows at load: sharp models in half precision pass, planted faults do not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES, build_model
from sidelight.server.capture import attention_function, attention_layers
from sidelight.server.models.loader import load
from transformers import AutoModelForCausalLM

BY_ROWS = [name for name, family in FAMILIES.items() if family.captures_rows]
QUICK = {"marian", "t5", "gpt2", "gemma3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.mark.parametrize("factor", [2, 8])
def test_a_sharp_model_in_bfloat16_is_captured_by_rows(tmp_path: Path, factor: int):
    """The model rounds its own probabilities so coarsely that single numbers differ by more than 0.03."""
    path = build_model("llama", tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(factor)
    model.save_pretrained(path)
    loaded = load(path, dtype="bfloat16", packed=False)
    assert loaded.attention_layers.captures_rows
    assert loaded.backend is not None


@pytest.mark.parametrize("name", slow_except(BY_ROWS, QUICK))
def test_another_scale_is_found_in_half_precision(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    dtype = ("bfloat16", "float16")[BY_ROWS.index(name) % 2]  # neighbours have different ones
    params = attention_function.AttentionParams
    monkeypatch.setattr(attention_function, "AttentionParams", lambda *, scale, **rest: params(scale=scale / 2, **rest))
    assert not load(build_model(name, folder), dtype=dtype, packed=False).attention_layers.captures_rows


@pytest.mark.parametrize("name", slow_except(BY_ROWS, QUICK))
def test_another_order_of_heads_is_found_in_half_precision(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def reverse(difference: Any, model: Any, modules: Any, matrices: Any, logits: Any) -> str | None:
        flipped = {kind: [layer.flip(1) for layer in layers] for kind, layers in matrices.items()}
        return difference(model, modules, flipped, logits)

    monkeypatch.setattr(attention_layers, "_difference", partial(reverse, attention_layers._difference))
    assert not load(build_model(name, folder), dtype="bfloat16", packed=False).attention_layers.captures_rows
