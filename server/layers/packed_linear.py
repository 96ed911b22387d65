"""Runs the linear layers of a model on a CPU, each in the way that a measurement at load finds fastest.

Knows layers, weights and kernels of torch; knows nothing of attention, requests or slots. A packed model is for
inference alone: packed weights are neither parameters nor in its state dict. Measures with the number of threads that
torch has at that moment: set it first.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kernels.cpu.program import PackedMatmul, PackedWeight, is_supported, pack_weight

Precision = Literal["float32", "bfloat16", "int8"]

# Maps [..., in] to [..., out]; at least one row.
LinearKernel = Callable[[Tensor], Tensor]
# Makes the way of one layer from its weight [out, in], the scale [out] of each channel (int8) and its bias [out].
LinearKernelFactory = Callable[[Tensor, Tensor | None, Tensor | None], LinearKernel]

# The name of our own way.
PANELS = "panels"

_REPEATS = 4
# Seconds to spend on a shape and a number of rows, reached where the machine is busy. Each way runs once all the same.
_BUDGET = 0.05
# Layers of a shape that are timed one after another. One layer alone would stay in the processor's cache, as it
# does not between two decoding steps.
_TIMED_LAYERS = 8
# The share of the time of the way in use below which another is chosen as well.
_WORTH_A_COPY = 0.9
# A batch size for which oneDNN chooses a layout; the one that it chooses for a single row is slow for all others.
_TYPICAL_ROWS = 32


class PackedLinear(nn.Module):
    """A linear layer whose kernel depends on the number of rows: [..., in] to [..., out] in the type of its input."""

    def __init__(self, in_features: int, out_features: int, weight: Tensor, bias: Tensor | None):
        """`weight` is what code finds that looks at this layer's type or shape."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = weight
        self.bias = bias
        self.panels: PackedWeight | None = None  # its weight as a program reads it, where one of its ways does
        self._dtype = torch.float32
        self._ways: list[LinearKernel] = []  # by the number of rows; the last for all greater numbers

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in], of any float type. Returns [..., out], of the same type."""
        rows = x.numel() // self.in_features
        if not rows:
            return x.new_empty((*x.shape[:-1], self.out_features))
        if x.dim() == 1:
            return self.forward(x[None])[0]
        way = self._ways[min(rows, len(self._ways) - 1)]
        return way(x) if x.dtype is self._dtype else way(x.to(self._dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        """What printing the model shows of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@dataclass(frozen=True)
class Shape:
    """What layers have in common that are measured together."""

    in_features: int
    out_features: int
    bias: bool
    dtype: torch.dtype  # of the weight before packing


@dataclass
class Measured:
    """How the layers of one shape run."""

    layers: int = 0
    chosen: dict[int, str] = field(default_factory=dict)  # by rows
    times: dict[int, dict[str, float]] = field(default_factory=dict)  # by rows and way, in microseconds a layer


@dataclass
class Report:
    """What was packed, and how each shape of layer runs."""

    precision: Precision
    shapes: dict[Shape, Measured] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)  # of weight that one call reads, by the layer's name
    seconds: float = 0.0  # that packing took

    @property
    def step_bytes(self) -> int:
        """Bytes of weight that one decoding step reads: no encoder, no keys and values of the source."""
        return sum(size for name, size in self.bytes.items() if _runs_each_step(name))

    @property
    def summary(self) -> str:
        """One line: how many layers and bytes, and how long packing took."""
        layers = sum(measured.layers for measured in self.shapes.values())
        return (
            f"packed {layers} linear layers in {self.precision}: {sum(self.bytes.values()) / 1e6:.1f} MB of weights, "
            f"{self.step_bytes / 1e6:.1f} MB a decoding step, {self.seconds:.1f} s"
        )

    def __str__(self) -> str:
        """The summary, and one line for each shape: which way from how many rows on, and its time."""
        lines = [self.summary]
        for shape, measured in self.shapes.items():
            ways = ", ".join(f"{r}: {way} {measured.times[r][way]:.0f} us" for r, way in measured.chosen.items())
            lines.append(f"  {shape.in_features}->{shape.out_features} x{measured.layers}: {ways}")
        return "\n".join(lines)


def pack(
    model: nn.Module,
    precision: Precision,
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 256),
    *,
    skip: Callable[[str, nn.Module], bool] = lambda _name, _module: False,
    in_panels: Callable[[str], bool] = lambda _name: False,
) -> Report:
    """Replaces in place every linear layer below `model` by a PackedLinear, tied embeddings kept.

    `rows` are the numbers of rows to measure; a number between two of them runs as the greater does, one above them all
    as the greatest. `skip(name, module)` says which layers to leave; `in_panels(name)`, which have their weights in
    panels whatever is measured, since programs read them: other ways must then earn their copy. With "int8", each
    weight has a scale for each output channel and each row of the input one of its own, so a row's result does not
    depend on its neighbours.
    Raises ValueError if `rows` has none, RuntimeError if this machine has no exact int8 kernel.
    """
    if not rows or min(rows) < 1:
        raise ValueError(f"rows must be one or more positive numbers, not {list(rows)}")
    start = time.perf_counter()
    report = Report(precision)
    with torch.no_grad():
        for shape, layers in _by_shape(model, skip).items():
            measured = report.shapes[shape] = Measured(len(layers))
            size = shape.out_features * (shape.in_features * _ITEM_BYTES[precision] + 4 * (precision == "int8"))
            report.bytes.update((names[0], size) for names in layers.values())
            _pack_shape(model, layers, precision, sorted(set(rows)), measured, in_panels)
    report.seconds = time.perf_counter() - start
    return report


def _by_shape(model: nn.Module, skip: Callable[[str, nn.Module], bool]) -> dict[Shape, dict[nn.Module, list[str]]]:
    """The layers to pack, each with all its names (one module may stand in several places)."""
    shapes: dict[Shape, dict[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # Not subclasses: what they add to a linear layer, or who reads their weight, nobody knows.
        if not name or type(module) not in (nn.Linear, Conv1D) or skip(name, module):
            continue
        layer: Any = module
        out_features, in_features = layer.weight.shape if type(module) is nn.Linear else layer.weight.shape[::-1]
        shape = Shape(in_features, out_features, layer.bias is not None, layer.weight.dtype)
        shapes.setdefault(shape, {}).setdefault(module, []).append(name)
    return shapes


def _pack_shape(
    model: nn.Module,
    layers: dict[nn.Module, list[str]],
    precision: Precision,
    rows: Sequence[int],
    measured: Measured,
    in_panels: Callable[[str], bool],
) -> None:
    """Measures the ways of layers of one shape, then replaces each. Empties `layers`, to hold no weight longer."""
    sources = [_source(module, precision) for module in list(layers)[:_TIMED_LAYERS]]
    weight = sources[0][0]
    makers = _makers(precision, weight.shape[1])
    dtype = torch.float32 if precision == "int8" else weight.dtype
    timed = {way: [make(*source) for source in sources] for way, make in makers.items()}
    generator = torch.Generator().manual_seed(0)
    inputs = {count: torch.randn(count, weight.shape[1], generator=generator).to(dtype) for count in rows}
    measured.times = {count: _measure(timed, x) for count, x in inputs.items()}
    must = {module for module, names in layers.items() if PANELS in makers and any(map(in_panels, names))}
    measured.chosen = _choose(measured.times, PANELS if must else None)
    del timed, sources, weight  # the memory of one candidate too many for a dozen of layers
    while layers:
        module, names = layers.popitem()
        ways = {*measured.chosen.values(), *((PANELS,) if module in must else ())}
        packed = _packed(module, _source(module, precision), {name: makers[name] for name in ways}, measured, dtype)
        for name in names:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed)


def _packed(
    module: Any,
    source: tuple[Tensor, Tensor | None, Tensor | None],
    makers: dict[str, LinearKernelFactory],
    measured: Measured,
    dtype: torch.dtype,
) -> PackedLinear:
    ways = {name: make(*source) for name, make in makers.items()}
    # Not the true weight, whose memory is to go: transformers' T5 asks for the type of a layer's weight.
    shown = torch.empty(source[0].shape, dtype=module.weight.dtype, device="meta")
    packed = PackedLinear(source[0].shape[1], source[0].shape[0], shown, source[2])
    packed.train(module.training)
    packed._dtype = dtype
    packed.panels = next((way.panels for way in ways.values() if isinstance(way, PackedMatmul)), None)
    for count, name in measured.chosen.items():
        packed._ways += [ways[name]] * (count + 1 - len(packed._ways))
    return packed


def _source(module: Any, precision: Precision) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A layer's weight [out, in] as the ways take it, its scales [out] (int8) and its bias [out]."""
    weight: Tensor = module.weight.detach()
    if type(module) is Conv1D:
        weight = weight.t()
    bias: Tensor | None = None if module.bias is None else module.bias.detach()
    if precision != "int8":
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        return weight.to(dtype).contiguous(), None, None if bias is None else bias.to(dtype)
    return *quantize(weight.float()), None if bias is None else bias.float()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 weight `[out, in]` in int8, and the scale `[out]` of each channel."""
    scale = torch.linalg.vector_norm(weight, torch.inf, 1).div_(127)
    scale[scale == 0] = 1  # a channel without weights
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def _measure(timed: dict[str, list[LinearKernel]], x: Tensor) -> dict[str, float]:
    """The time of a layer for one input, in microseconds, by way."""
    runs: dict[str, list[float]] = {}
    for name, ways in timed.items():
        runs[name] = []
        ways[0](x)  # the first call makes oneDNN generate its kernel
    end = time.perf_counter() + _BUDGET
    for _ in range(_REPEATS):
        for name, ways in timed.items():
            if runs[name] and min(runs[name]) > 2 * min(min(times) for times in runs.values() if times):
                continue  # a slow one need not be known well
            for way in ways:
                start = time.perf_counter()
                if start > end and runs[name]:
                    break
                way(x)
                runs[name].append((time.perf_counter() - start) * 1e6)
    # The least, not the median: where other processes run, most calls may have waited for a processor.
    return {name: min(times) for name, times in runs.items()}


def _choose(times: dict[int, dict[str, float]], main: str | None = None) -> dict[int, str]:
    """The way for each number of rows. A second one beside `main`, or the best overall, must earn its copy."""
    best = {rows: min(by_way.values()) for rows, by_way in times.items()}
    names = next(iter(times.values()))
    if main is None:
        main = min(names, key=lambda name: sum(by_way[name] / best[rows] for rows, by_way in times.items()))
    return {
        rows: main if by_way[main] * _WORTH_A_COPY <= best[rows] else min(by_way, key=by_way.__getitem__)
        for rows, by_way in times.items()
    }


def _runs_each_step(name: str) -> bool:
    """Whether a decoding step calls the layer of this name."""
    if "encoder" in name.split("."):
        return False
    parts = set(name.split("."))
    return not (parts & {"encoder_attn", "EncDecAttention"} and parts & {"k_proj", "v_proj", "k", "v"})


# ---- float32 and bfloat16 -------------------------------------------------------------------------------------------

_ITEM_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}


def _makers(precision: Precision, in_features: int) -> dict[str, LinearKernelFactory]:
    """The ways that this machine has, by name; never none."""
    if precision != "int8":
        onednn = torch.backends.mkldnn.is_available() and (
            precision == "float32" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        ways: dict[str, LinearKernelFactory] = {"onednn": _onednn, "torch": _torch} if onednn else {"torch": _torch}
        return ways | ({PANELS: _panels} if precision == "float32" and is_supported() else {})
    exact = {name: make for name, make in _INT8.items() if _is_exact(name, in_features)}
    if not exact:
        raise RuntimeError("this machine has no exact int8 kernel")
    return exact


def _torch(weight: Tensor, _scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    def way(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return way


def _onednn(weight: Tensor, _scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    """The operators that torch.compile's freezing emits: the weight reordered once."""
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, _TYPICAL_ROWS)
    linear = torch.ops.mkldnn._linear_pointwise.default

    def way(x: Tensor) -> Tensor:
        return linear(x, packed, bias, "none", [], "")

    return way


def _panels(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> LinearKernel:
    """Our own kernels, which a program's steps share."""
    return PackedMatmul(pack_weight(weight, scale, bias))


# ---- int8 -----------------------------------------------------------------------------------------------------------
#
# x is s * q: q whole numbers from -127 to 127, s the scale of its row. Every kernel below maps q to
# q @ weight.T * scale, summed exactly in int32, converted to float32 and multiplied once: the same bits from all of
# them, whatever the batch. What follows is multiplied and added one by one, since a fused multiply-add might be used
# for some elements and not for others. A row of zeros makes q NaN, its product some finite number, and that times s
# zero again.


def _int8(product: LinearKernel, bias: Tensor | None) -> LinearKernel:
    level = torch.tensor(1 / 127)  # multiplying by a tensor takes half the time of a Python number

    def way(x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, True).mul_(level)  # several times as fast as a norm or aminmax
        result = product((x / scale).round_()).mul_(scale)
        return result if bias is None else result.add_(bias)

    return way


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
        shifted = q.add_(128).to(torch.uint8)  # signed inputs have no fast kernel
        return linear(shifted, 1.0, 128, packed, scale, zero_points, None, 1.0, 0, float32, "none", [], "")

    return product


def _int8_fbgemm(weight: Tensor, scale: Tensor) -> LinearKernel:
    engine = torch.backends.quantized.engine
    zero_points = torch.zeros(weight.shape[0], dtype=torch.int64)
    make_quantized = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage]
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch means to drop these tensors, as yet the only way to FBGEMM's kernels. "onednn" will do then.
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
_INT8[PANELS] = _panels  # to the bit as the others are, quantization and all


@functools.cache
def _is_exact(name: str, in_features: int) -> bool:
    """Whether a kernel exists here and adds up exactly: on processors without VNNI, some saturate at 16 bits."""
    if name == PANELS:  # by construction, and by its tests
        return is_supported(of_bytes=True)
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
    except (RuntimeError, AttributeError):  # not in this build of torch, or not on this processor
        return False
