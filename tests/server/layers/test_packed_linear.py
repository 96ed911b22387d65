"""Packed layers compute the results of the layers that they replace."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from combinations import slow_except
from model_zoo import FAMILIES, SOURCE, build_model
from sidelight.server.layers import PackedLinear, Precision, pack, packed_linear
from sidelight.server.models import load
from torch import nn
from transformers.pytorch_utils import Conv1D

ROWS = (1, 2, 8, 16)
PRECISIONS = ("float32", "bfloat16", "int8")
# Largest difference from float32, as a share of the largest value.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 3e-2}


def layer(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features, bias).requires_grad_(False)


def packed(module: nn.Module, precision: Precision) -> nn.Module:
    model = nn.Sequential(copy.deepcopy(module))
    pack(model, precision, ROWS)
    assert isinstance(model[0], PackedLinear)
    return model[0]


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    assert result.shape == expected.shape
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("in_features", "out_features"), [(64, 64), (33, 7), (1, 5), (5, 1), (512, 2048), (96, 5801)])
def test_is_the_layer_it_replaces(precision, bias, in_features, out_features):
    original = layer(in_features, out_features, bias)
    ours = packed(original, precision)
    for shape in [(), (1,), (3,), (1, 1), (2, 3), (17,), (4, 1, 5), (1, 70)]:
        x = torch.randn(*shape, in_features)
        assert error(ours(x), original(x)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_no_rows(precision, shape):
    assert packed(layer(64, 32), precision)(torch.empty(*shape, 64)).shape == (*shape, 32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_that_are_not_contiguous(precision):
    original = layer(64, 48)
    ours = packed(original, precision)
    for x in (
        torch.randn(64, 5).t(),
        torch.randn(6, 128)[::2, ::2],
        torch.randn(3, 7, 64)[:, -1],
        torch.randn(3, 7, 64)[:, -1:],
        torch.randn(7, 3, 64).transpose(0, 1),
        torch.randn(1, 64).expand(4, 64),
    ):
        assert error(ours(x), original(x)) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_has_the_type_of_the_input(precision, dtype):
    original = layer(64, 48)
    x = torch.randn(3, 64).to(dtype)
    result = packed(original, precision)(x)
    assert result.dtype is dtype
    assert error(result.float(), original(x.float())) < 2e-2 + TOLERANCE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_of_other_types_are_packed(precision):
    original = layer(64, 48)
    x = torch.randn(3, 64)
    assert error(packed(original.to(torch.bfloat16), precision)(x), original.float()(x)) < 3e-2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_conv1d(precision):
    original = Conv1D(96, 32).requires_grad_(False)
    nn.init.normal_(original.bias)
    x = torch.randn(2, 5, 32)
    assert error(packed(original, precision)(x), original(x)) < TOLERANCE[precision]


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zoo")


@torch.inference_mode()
def logits(loaded, model) -> torch.Tensor:
    source = torch.tensor([loaded.tokenizer.encode_source(SOURCE).ids]) if loaded.is_encoder_decoder else None
    torch.manual_seed(0)
    target = torch.randint(4, 60, (1, 12))
    if source is None:
        return model(input_ids=target).logits
    return model(input_ids=source, decoder_input_ids=target).logits


@pytest.mark.parametrize("family", slow_except(FAMILIES, {"marian", "t5", "gpt2", "gemma3"}))
def test_logits_of_models(family, folder):
    loaded = load(build_model(family, folder), packed=False)
    original = logits(loaded, loaded.model)
    exact, quantized = copy.deepcopy(loaded.model), copy.deepcopy(loaded.model)
    report = pack(exact, "float32", ROWS)
    assert report.bytes
    assert not any(type(module) in (nn.Linear, Conv1D) for module in exact.modules())
    assert error(logits(loaded, exact), original) < 1e-5
    pack(quantized, "int8", ROWS)
    result = logits(loaded, quantized)
    # Measured: 0.036 to 0.13 of the largest logit, on random weights, whose logits lie close together.
    assert error(result, original) < 0.25
    assert torch.nn.functional.cosine_similarity(result, original, dim=-1).mean() > 0.95


def test_tied_embeddings_stay(bundled):
    model = copy.deepcopy(bundled.model)
    before = model.get_input_embeddings().weight.clone()
    pack(model, "int8", ROWS)
    assert isinstance(model.get_output_embeddings(), PackedLinear)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.dtype is torch.float32
    assert model.device.type == "cpu"


def test_generate_writes_the_same(bundled):
    model = copy.deepcopy(bundled.model)
    pack(model, "float32", ROWS)
    ids = torch.tensor([bundled.tokenizer.encode_source("Where is the nearest train station?").ids])
    expected = bundled.model.generate(ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids)), expected)


# ---- pack -----------------------------------------------------------------------------------------------------------


def test_weights_not_used_are_freed():
    model = nn.Sequential(layer(64, 64), layer(64, 32))
    weights = [weakref.ref(module.weight) for module in model]
    pack(model, "int8", ROWS)
    gc.collect()
    assert [weight() for weight in weights] == [None, None]
    assert not list(model.parameters())


def test_a_skipped_layer_stays():
    model = nn.ModuleDict({"kept": layer(8, 8), "packed": layer(8, 8)})
    report = pack(model, "float32", ROWS, skip=lambda name, _module: name == "kept")
    assert type(model["kept"]) is nn.Linear
    assert type(model["packed"]) is PackedLinear
    assert list(report.bytes) == ["packed"]


def test_a_shared_layer_stays_shared():
    shared = layer(8, 8)
    model = nn.ModuleDict({"one": shared, "two": shared})
    report = pack(model, "float32", ROWS)
    assert model["one"] is model["two"]
    assert list(report.bytes) == ["one"]


def test_a_layer_shows_its_shape_and_type_as_before():
    ours = packed(layer(64, 32), "int8")
    assert ours.weight.shape == (32, 64)
    assert ours.weight.dtype is torch.float32
    assert (ours.in_features, ours.out_features) == (64, 32)


@pytest.mark.parametrize(("precision", "size"), [("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_report(bundled, precision, size):
    model = copy.deepcopy(bundled.model)
    elements = {n: m.weight.numel() for n, m in model.named_modules() if type(m) is nn.Linear}
    report = pack(model, precision, ROWS)
    assert report.bytes.keys() == elements.keys()
    scales = {name: 4 * model.get_submodule(name).out_features * (size == 1) for name in elements}
    assert report.bytes == {name: size * elements[name] + scales[name] for name in elements}
    read = [n for n in elements if "encoder.layers" not in n.replace("decoder", "") and "encoder_attn.k" not in n]
    assert report.step_bytes == sum(report.bytes[name] for name in read if "encoder_attn.v" not in name)
    assert sum(measured.layers for measured in report.shapes.values()) == len(elements)
    for measured in report.shapes.values():
        assert tuple(measured.chosen) == ROWS
        assert all(way in measured.times[rows] for rows, way in measured.chosen.items())
    assert "decoding step" in str(report)


def test_layers_of_the_same_shapes_are_measured_once(monkeypatch):
    measured = []
    measure = packed_linear._measure_all
    monkeypatch.setattr(packed_linear, "_measured_times", {})
    monkeypatch.setattr(packed_linear, "_measure_all", lambda *args: measured.append(args) or measure(*args))
    first, second = (nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24)) for _ in range(2))
    reports = [pack(model, "float32") for model in (first, second)]
    assert len(measured) == 2
    assert [each.chosen for each in reports[0].shapes.values()] == [each.chosen for each in reports[1].shapes.values()]
    x = torch.randn(3, 24)
    assert not torch.equal(first(x), second(x))
    pack(nn.Sequential(nn.Linear(24, 40)), "float32", rows=(1,))  # other numbers of rows
    pack(nn.Sequential(nn.Linear(24, 40, bias=False)), "float32")
    assert len(measured) == 4


@pytest.mark.parametrize("rows", [(), (0, 1), (-1,)])
def test_rows_must_be_positive(rows):
    with pytest.raises(ValueError, match="rows"):
        pack(nn.Sequential(layer(8, 8)), "float32", rows)
