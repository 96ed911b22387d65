"""Every tensor of a model is there, has the right shape, and is finite. Otherwise the error names the tensor."""

from __future__ import annotations

import pytest
import torch
from combinations import slow_except
from damaged_checkpoints import edit, refusal, weights
from model_zoo import FAMILIES
from safetensors.torch import load_file
from sidelight.server.models.loader import load


@pytest.mark.parametrize("name", slow_except(FAMILIES, {"marian", "t5", "gpt2", "fsmt"}))
def test_a_tensor_that_is_missing_is_named(copy_model, name):
    generator = torch.Generator().manual_seed(len(name))
    names = sorted(load_file(copy_model(name) / "model.safetensors"))
    # Biases of scores are zeros where they are missing, as they should be.
    names = [name for name in names if name != "final_logits_bias" and "embed_positions" not in name]
    for place in torch.randperm(len(names), generator=generator)[:3].tolist():
        path = copy_model(name)
        with weights(path) as tensors:
            del tensors[names[place]]
        message = refusal(path)
        assert message.startswith("model.safetensors lacks")
        assert names[place].split(".")[-1] in message


@pytest.mark.parametrize(("name", "layer"), [("marian", ".decoder.layers.1."), ("gpt2", ".h.2."), ("t5", ".block.1.")])
def test_a_layer_that_is_missing_is_named(copy_model, name, layer):
    path = copy_model(name)
    with weights(path) as tensors:
        for tensor in [tensor for tensor in tensors if layer in tensor]:
            del tensors[tensor]
    message = refusal(path)
    assert "lacks" in message
    assert layer in message


@pytest.mark.parametrize(
    ("name", "field"),
    [("marian", "decoder_layers"), ("gpt2", "n_layer"), ("llama", "num_hidden_layers"), ("t5", "num_layers")],
)
@pytest.mark.parametrize("count", [0, 1])
def test_layers_that_are_not_used_are_named(copy_model, name, field, count):
    path = copy_model(name)
    edit(path / "config.json", **{field: count}, layer_types=None)
    assert refusal(path).startswith("model.safetensors has more layers than config.json says")


def test_tensors_of_another_use_are_left(copy_model):
    path = copy_model("gpt2")
    with weights(path) as tensors:
        tensors["classifier.3.weight"] = torch.ones(3, 3)
    load(path, packed=False)


def test_another_shape_is_an_error(copy_model):
    path = copy_model("marian")
    with weights(path) as tensors:
        name = "model.decoder.layers.1.fc1.weight"
        tensors[name] = tensors[name][:, :7]
    assert refusal(path) == f"model.safetensors: the tensor {name} is 64x7, and 64x32 by config.json"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", slow_except(["marian", "t5", "gpt2", "fsmt"], {"marian", "gpt2"}))
def test_a_tensor_that_is_not_finite_is_named(copy_model, name, value):
    names = sorted(load_file(copy_model(name) / "model.safetensors"))
    for tensor in (names[0], names[len(names) // 2], names[-1]):
        path = copy_model(name)
        with weights(path) as tensors:
            tensors[tensor].view(-1)[-1] = value
        message = refusal(path)
        assert message.startswith("model.safetensors: NaN or infinity, as float32, in the tensor")


def test_numbers_that_the_type_does_not_hold_are_named(copy_model):
    path = copy_model("gpt2")
    with weights(path) as tensors:
        tensors["transformer.h.1.ln_1.weight"][3] = 1e6
    load(path, packed=False)
    expected = "model.safetensors: NaN or infinity, as float16, in the tensor transformer.h.1.ln_1.weight"
    assert refusal(path, dtype="float16") == expected
