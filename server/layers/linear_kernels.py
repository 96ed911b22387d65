"""The kernels of a packed linear layer: torch's, oneDNN's, FBGEMM's, and our own, which reads weights in panels.

A kernel maps `[..., in]` to `[..., out]`. In int8 there are exact kernels alone. Knows weights and kernels, and nothing
of models.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.cpu import PackedMatmul, is_supported, pack_weight

Precision = Literal["float32", "bfloat16", "int8"]

# Maps [..., in] to [..., out]; at least one row.
LinearKernel = Callable[[Tensor], Tensor]
# Makes the kernel of one layer from its weight [out, in], the scale [out] of each channel (int8) and its bias [out].
LinearKernelFactory = Callable[[Tensor, Tensor | None, Tensor | None], LinearKernel]

# The name of our own kernel.
PANELS = "panels"

# A batch size for which oneDNN chooses a layout. The layout that it chooses for a single row is slow for all others.
_TYPICAL_ROWS = 32


def linear_kernels(precision: Precision, in_features: int) -> dict[str, LinearKernelFactory]:
    """The kernels that this machine has for rows of `in_features` numbers, by name.

    There is always one for float32 and bfloat16. Raises RuntimeError if there is no exact int8 kernel.
    """
    if precision != "int8":
        onednn = torch.backends.mkldnn.is_available() and (
            precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        kernels: dict[str, LinearKernelFactory] = {"onednn": _onednn, "torch": _torch} if onednn else {"torch": _torch}
        return kernels | ({PANELS: _panels} if precision == "float32" and is_supported() else {})
    exact = {name: factory for name, factory in _INT8.items() if _is_exact(name, in_features)}
    if not exact:
        raise RuntimeError("this machine has no exact int8 kernel")
    return exact


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a float32 weight `[out, in]`: to int8, and the float32 scale `[out]` of each output channel."""
    scale = torch.linalg.vector_norm(weight, torch.inf, 1).div_(127)
    scale[scale == 0] = 1  # a channel whose weights are all zero
    return (weight / scale[:, None]).round_().to(torch.int8), scale


# ---- float32 and bfloat16 -------------------------------------------------------------------------------------------


def _torch(weight: Tensor, _scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    def kernel(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return kernel


def _onednn(weight: Tensor, _scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    """The operators that the freezing of torch.compile emits: the weight is reordered once."""
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, _TYPICAL_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise.default

    def kernel(x: Tensor) -> Tensor:
        return linear(x, packed, bias, "none", [], "")

    return kernel


def _panels(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    """Our own kernel, whose weights CPU programs read, too."""
    return PackedMatmul(pack_weight(weight, scale, bias))


# ---- int8 -----------------------------------------------------------------------------------------------------------
#
# x is s * q: q holds whole numbers from -127 to 127, and s is the scale of the row of x. Every product below maps q to
# q @ weight.T * scale. The product is summed exactly in int32, converted to float32 and multiplied once, so all
# products give the same bits, whatever the batch. The scale and the bias are then multiplied and added one by one,
# since a fused multiply-add might be used for some elements and not for others. For a row of zeros, q is NaN, its
# product is a finite number, and the product times s is zero again.


def _int8(product: LinearKernel, bias: Tensor | None) -> LinearKernel:
    level = torch.tensor(1 / 127)  # to multiply by a tensor takes half the time of a Python number

    def kernel(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, True).mul_(level)  # several times as fast as a norm or aminmax
        result = product((x / scale).round_()).mul_(scale)
        return result if bias is None else result.add_(bias)

    return kernel


def _int8_torch(weight: Tensor, scale: Tensor) -> LinearKernel:
    weight = weight.t()
    multiply = torch.ops.aten._int_mm.default

    def product(q: Tensor) -> Tensor:
        if q.dim() == 2:
            return multiply(q.to(torch.int8), weight) * scale
        result = multiply(q.to(torch.int8).reshape(-1, q.shape[-1]), weight) * scale
        return result.view(*q.shape[:-1], -1)

    return product


def _int8_onednn(weight: Tensor, scale: Tensor) -> LinearKernel:
    packed = torch.ops.onednn.qlinear_prepack.default(weight, [_TYPICAL_ROWS, weight.shape[1]])
    linear = torch.ops.onednn.qlinear_pointwise.default
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int32)
    float32 = torch.float32

    def product(q: Tensor) -> Tensor:
        shifted = q.add_(128).to(torch.uint8)  # there is no fast kernel for signed inputs
        return linear(shifted, 1.0, 128, packed, scale, zero_points, None, 1.0, 0, float32, "none", [], "")

    return product


def _int8_fbgemm(weight: Tensor, scale: Tensor) -> LinearKernel:
    engine = torch.backends.quantized.engine
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
    make_quantized = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage]
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch plans to drop these tensors. They are the only way to FBGEMM's kernels today; without them, "onednn"
            # remains.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation functions")
            quantized = make_quantized(weight, scale.double(), zero_points, 0)
        packed = torch.ops.quantized.linear_prepack.default(quantized, None)
    finally:
        torch.backends.quantized.engine = engine
    linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def product(q: Tensor) -> Tensor:
        return linear(q, 1.0, 128, packed)

    return product


_PRODUCTS: dict[str, Callable[[Tensor, Tensor], LinearKernel]] = {
    "fbgemm": _int8_fbgemm,
    "onednn": _int8_onednn,
    "torch": _int8_torch,
}


def _make_int8(name: str, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    assert scale is not None
    return _int8(_PRODUCTS[name](weight, scale), bias)


_INT8: dict[str, LinearKernelFactory] = {name: functools.partial(_make_int8, name) for name in _PRODUCTS}
_INT8[PANELS] = _panels  # gives the bits of the others, and quantizes its input itself


@functools.cache
def _is_exact(name: str, in_features: int) -> bool:
    """Whether a kernel exists here and sums exactly. On processors without VNNI, some kernels saturate at 16 bits."""
    if name == PANELS:  # exact by construction, and by its tests
        return is_supported(int8=True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (67, in_features), generator=generator, dtype=torch.int8)
    weight[:2] = torch.tensor([[127], [-127]])
    scale = torch.rand(67, generator=generator) + 0.1
    q = torch.randint(-127, 128, (35, in_features), generator=generator).float()
    q[:2] = torch.tensor([[127], [-127]])
    expected = (q.double() @ weight.double().t()).float() * scale
    try:
        product = _PRODUCTS[name](weight, scale)
        return all(torch.equal(product(q[:rows].clone()), expected[:rows]) for rows in (1, 2, 3, 8, 35))
    except (RuntimeError, AttributeError):  # this build of torch, or this processor, does not have it
        return False
