"""Fused projections give the numbers of the projections that they replace, from one call, in any order of calls."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES, build_model
from sidelight.server.capture import LayerKey, layer_key_of, mark_attention
from sidelight.server.layers import FusedSlice, fuse_projections, pack
from sidelight.server.models import load
from torch import nn

NAMES = ("q_proj", "k_proj", "v_proj")
FUSED = {
    "bart",
    "gemma2",
    "gemma3",
    "llama",
    "m2m100",
    "marian",
    "mbart",
    "mt5",
    "nllb",
    "pegasus",
    "qwen3",
    "t5",
    "umt5",
}


class Attention(nn.Module):
    """The projections of most families. Keys and values have half as many heads."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        for name, width in zip(NAMES, (12, 6, 6), strict=True):
            setattr(self, name, nn.Linear(8, width, bias))


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The output size of each call of a linear layer."""
    sizes: list[int] = []
    forward = nn.Linear.forward

    def counted(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        sizes.append(layer.out_features)
        return forward(layer, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return sizes


def attention(kind="decoder_self", **options) -> tuple[nn.Module, dict[str, torch.Tensor], torch.Tensor]:
    """An attention whose projections are fused, their results before, and the input of these."""
    module = Attention(**options).requires_grad_(False)
    mark_attention(module, LayerKey(kind, 0))
    x = torch.randn(2, 3, 8)
    before = {name: getattr(module, name)(x) for name in NAMES}
    fuse_projections(module)
    return module, before, x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("order", list(permutations(NAMES)))
def test_one_call_gives_the_results_of_three(order, bias, calls):
    module, before, x = attention(bias=bias)
    calls.clear()
    for name in order:
        torch.testing.assert_close(getattr(module, name)(x), before[name])
    assert calls == [24]


def test_each_input_has_its_own_results():
    """Code may project two inputs in turns, or project one input twice."""
    module = Attention().requires_grad_(False)
    inputs = [torch.randn(2, 8), torch.randn(2, 8)]
    before = [{name: getattr(module, name)(x) for name in NAMES} for x in inputs]
    mark_attention(module, LayerKey("decoder_self", 0))
    fuse_projections(module)
    for name, which in (("q_proj", 0), ("k_proj", 1), ("v_proj", 0), ("v_proj", 0), ("q_proj", 1), ("v_proj", 1)):
        torch.testing.assert_close(getattr(module, name)(inputs[which]), before[which][name])


def test_no_result_is_kept_that_all_projections_have_returned():
    module, _, x = attention()
    fused = module.q_proj.fused
    for name in NAMES:
        assert fused._input is (None if name == "q_proj" else x)
        getattr(module, name)(x)
    assert fused._input is None
    assert not fused._slices


def test_a_call_that_raises_leaves_no_result(monkeypatch):
    module, before, x = attention()
    module.q_proj(torch.randn(2, 3, 8))
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module.q_proj(x)
    for name in reversed(NAMES):
        torch.testing.assert_close(getattr(module, name)(x), before[name])


def test_queries_of_a_cross_attention_stay_apart(calls):
    module, before, x = attention("cross")
    assert type(module.q_proj) is nn.Linear
    calls.clear()
    for name in NAMES:
        torch.testing.assert_close(getattr(module, name)(x), before[name])
    assert calls == [12, 12]


def test_projections_that_do_not_fit_together_stay_as_they_are():
    class Special(nn.Linear):
        """A subclass, which may add to a linear layer."""

    for odd in (nn.Linear(8, 6, bias=False), nn.Linear(8, 6).half(), nn.Linear(4, 6), Special(8, 6), None):
        module = Attention()
        module.k_proj = odd
        mark_attention(module, LayerKey("decoder_self", 0))
        fuse_projections(module)
        assert module.k_proj is odd
        assert type(module.q_proj) is nn.Linear
    without_key = Attention()
    fuse_projections(without_key)
    assert type(without_key.q_proj) is nn.Linear


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_fused_projections_are_packed_as_one(precision):
    """The results stay the same, and the report still knows the bytes that a step reads."""
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        decoder, encoder_attn = Attention(), Attention()
        decoder.encoder_attn = encoder_attn
        models.append(nn.ModuleDict({"decoder": decoder}).requires_grad_(False))
        mark_attention(decoder, LayerKey("decoder_self", 0))
        mark_attention(encoder_attn, LayerKey("cross", 0))
    models[1].load_state_dict(models[0].state_dict())
    fuse_projections(models[1])
    apart, fused = (pack(model, precision) for model in models)
    assert fused.step_bytes == apart.step_bytes
    assert sum(fused.bytes.values()) == sum(apart.bytes.values())
    x = torch.randn(5, 8)
    for name in NAMES:
        for find in (lambda model: model.decoder, lambda model: model.decoder.encoder_attn):
            mine, other = (getattr(find(model), name)(x) for model in models)
            assert torch.equal(mine, other) if precision == "int8" else torch.allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("name", slow_except(sorted(FAMILIES), {"marian", "t5", "gpt2", "gemma3"}))
def test_every_family(name, tmp_path):
    loaded = load(build_model(name, tmp_path), packed=False)
    attentions = [module for module in loaded.model.modules() if layer_key_of(module) is not None]
    fused = [module for module in attentions if any(isinstance(child, FusedSlice) for child in module.children())]
    assert fused == (attentions if name in FUSED else [])
