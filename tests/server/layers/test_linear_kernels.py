"""The kernels of linear layers: in int8, all give the same bits, and the result of a row does not depend on others."""

from __future__ import annotations

import copy

import pytest
import torch
from sidelight.server.layers import PackedLinear, linear_kernels, pack
from torch import nn

ROWS = (1, 2, 8, 16)


def layer(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(in_features + out_features)
    return nn.Linear(in_features, out_features, bias).requires_grad_(False)


def packed(module: nn.Module, precision: linear_kernels.Precision) -> nn.Module:
    model = nn.Sequential(copy.deepcopy(module))
    pack(model, precision, ROWS)
    assert isinstance(model[0], PackedLinear)
    return model[0]


@pytest.mark.covering(2)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (33, 7), (2048, 67), (96, 5801)])
@pytest.mark.parametrize("kernel", ["as chosen", *linear_kernels._INT8])
def test_a_row_is_the_same_whatever_its_neighbours(monkeypatch, kernel, size, bias):
    if kernel != "as chosen":
        if not linear_kernels._is_exact(kernel, size[0]):
            pytest.skip(f"{kernel} is not exact on this machine")
        monkeypatch.setattr(linear_kernels, "_INT8", {kernel: linear_kernels._INT8[kernel]})
    ours = packed(layer(*size, bias), "int8")
    row = torch.randn(1, size[0])
    alone = ours(row)
    for count in (1, 2, 3, 8, 33):
        for scale in (1e-3, 1.0, 1e4):
            for place in {0, count // 2, count - 1}:
                x = torch.randn(count, size[0]) * scale
                x[place] = row
                assert torch.equal(ours(x)[place], alone[0])
                assert torch.equal(ours(x[:, None])[place], alone)


@pytest.mark.parametrize("strides", ["contiguous", "transposed", "every other", "expanded"])
def test_kernels_give_the_same_bits(monkeypatch, strides):
    x = {
        "contiguous": torch.randn(5, 512),
        "transposed": torch.randn(5, 3, 512).transpose(0, 1),
        "every other": torch.randn(10, 1024)[::2, ::2],
        "expanded": torch.randn(1, 512).expand(5, 512),
    }[strides]
    results = []
    for kernel in [name for name in linear_kernels._INT8 if linear_kernels._is_exact(name, 512)]:
        with monkeypatch.context() as patch:
            patch.setattr(linear_kernels, "_INT8", {kernel: linear_kernels._INT8[kernel]})
            results.append(packed(layer(512, 300), "int8")(x))
    assert all(torch.equal(result, results[0]) for result in results)
    expected = layer(512, 300)(x)
    assert float((results[0] - expected).abs().max()) < 3e-2 * float(expected.abs().max())


@pytest.mark.parametrize("kernel", linear_kernels._INT8)
def test_a_row_of_zeros_is_the_bias(monkeypatch, kernel):
    if not linear_kernels._is_exact(kernel, 64):
        pytest.skip(f"{kernel} is not exact on this machine")
    monkeypatch.setattr(linear_kernels, "_INT8", {kernel: linear_kernels._INT8[kernel]})
    original = layer(64, 48)
    x = torch.randn(3, 64)
    x[1] = 0
    result = packed(original, "int8")(x)
    assert torch.equal(result[1], original.bias)
    assert result.isfinite().all()


def test_a_channel_of_zeros():
    original = layer(64, 48, bias=False)
    original.weight[5] = 0
    result = packed(original, "int8")(torch.randn(3, 64))
    assert (result[:, 5] == 0).all()
    assert result.isfinite().all()


def test_the_quantization_engine_is_left_as_it_was():
    engine = torch.backends.quantized.engine
    packed(layer(64, 32), "int8")
    assert torch.backends.quantized.engine == engine
