"""Linear layers for tests of CPU programs: what packs a layer, and what its results must be."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sidelight.kernels.cpu import PackedWeight, is_supported, pack_weight
from torch import Tensor

NAN = float("nan")
PRECISIONS = ("float32", pytest.param("int8", marks=pytest.mark.skipif(not is_supported(int8=True), reason="no int8")))


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, NAN)


class Layer(NamedTuple):
    """A linear layer. Calling it gives the result of plain torch: for int8 the same bits as a program's."""

    weight: Tensor
    channel_scales: Tensor | None
    bias: Tensor | None

    @property
    def packed(self) -> PackedWeight:
        return pack_weight(*self)

    def __call__(self, x: Tensor) -> Tensor:
        if self.channel_scales is None:
            return F.linear(x, self.weight, self.bias)
        scale = x.abs().amax(-1, True) * torch.tensor(1 / 127)
        quantized = (x / scale).nan_to_num().round().long()
        result = (quantized @ self.weight.long().T).float() * self.channel_scales * scale
        return result if self.bias is None else result + self.bias

    @property
    def double(self) -> Layer:
        return Layer(*(None if tensor is None else tensor.double() for tensor in self))


def make_layer(in_features: int, out_features: int, precision: str, bias: bool = True) -> Layer:
    biases = torch.randn(out_features) if bias else None
    if precision == "float32":
        return Layer(torch.randn(out_features, in_features), None, biases)
    weight = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    weight[0] = 127
    return Layer(weight, torch.rand(out_features) / 100 + 1e-3, biases)
