"""PackedLinear: a linear layer on a CPU whose kernel is chosen by a measurement at load.

`pack` replaces the linear layers of a model. A packed model is for inference alone: packed weights are neither
parameters nor in the state dict. The measurement uses as many threads as torch has at that moment, so set the number
of threads first. Knows layers and weights; knows nothing of attention, requests or slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kernels.cpu import PackedMatmul, PackedWeight
from .linear_kernels import PANELS, LinearKernel, LinearKernelFactory, Precision, linear_kernels, quantize

_ITEM_BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}

_REPEATS = 4
# Seconds to spend on a shape and a number of rows. A busy machine reaches them; each kernel runs once all the same.
_BUDGET = 0.05
# The number of layers of a shape that are timed one after another. One layer alone would stay in the processor's
# cache, where no layer stays between two decoding steps.
_TIMED_LAYERS = 8
# A second kernel of a layer needs a copy of the weight. It is chosen below this share of the first kernel's time.
_WORTH_A_COPY = 0.9
# The times of kernels that this process has measured, by all that they depend on. So further models with layers of the
# same shapes load sooner, and run by the same kernels.
_measured_times: dict[tuple[object, ...], dict[int, dict[str, float]]] = {}


class PackedLinear(nn.Module):
    """A linear layer whose kernel depends on the number of rows: [..., in] to [..., out] in the type of its input."""

    def __init__(self, in_features: int, out_features: int, weight: Tensor, bias: Tensor | None):
        """`weight` is for code that reads this layer's type or shape."""
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = weight
        self.bias = bias
        self.panels: PackedWeight | None = None  # the weight as CPU programs read it; None: no kernel has it so
        self._dtype = torch.float32
        self._kernels: list[LinearKernel] = []  # by the number of rows; the last for all greater numbers

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in], of any float type. Returns [..., out], of the same type."""
        rows = x.numel() // self.in_features
        if not rows:
            return x.new_empty((*x.shape[:-1], self.out_features))
        if x.dim() == 1:
            return self.forward(x[None])[0]
        kernel = self._kernels[min(rows, len(self._kernels) - 1)]
        return kernel(x) if x.dtype is self._dtype else kernel(x.to(self._dtype)).to(x.dtype)

    def extra_repr(self) -> str:
        """What printing the model shows of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


@dataclass(frozen=True)
class Shape:
    """What the layers have in common that are measured together."""

    in_features: int
    out_features: int
    bias: bool
    dtype: torch.dtype  # of the weight before packing


@dataclass
class Measured:
    """How the layers of one shape run."""

    layers: int = 0
    chosen: dict[int, str] = field(default_factory=dict)  # the kernel, by the number of rows
    times: dict[int, dict[str, float]] = field(default_factory=dict)  # microseconds a layer, by rows and kernel


@dataclass
class Report:
    """What was packed, and how each shape of layer runs."""

    precision: Precision
    shapes: dict[Shape, Measured] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)  # of weight that one call reads, by the name of the layer
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
        """The summary, and one line for each shape: which kernel from how many rows on, and its time."""
        lines = [self.summary]
        for shape, measured in self.shapes.items():
            kernels = ", ".join(f"{r}: {name} {measured.times[r][name]:.0f} us" for r, name in measured.chosen.items())
            lines.append(f"  {shape.in_features}->{shape.out_features} x{measured.layers}: {kernels}")
        return "\n".join(lines)


def pack(
    model: nn.Module,
    precision: Precision,
    rows: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 256),
    *,
    skip: Callable[[str, nn.Module], bool] = lambda _name, _module: False,
    in_panels: Callable[[str], bool] = lambda _name: False,
) -> Report:
    """Replace in place every linear layer below `model` by a PackedLinear, and keep tied embeddings.

    `rows` are the numbers of rows to measure. A number between two of them runs as the greater does; a number above all
    of them as the greatest. `skip(name, module)` says which layers to leave. `in_panels(name)` says which layers have
    their weights in panels whatever is measured, since CPU programs read them: another kernel must then earn its copy
    of the weight. With "int8", each weight has a scale for each output channel, and each row of the input has its own
    scale, so the result of a row does not depend on other rows.
    Raises ValueError if `rows` is empty or not positive, RuntimeError if this machine has no exact int8 kernel.
    """
    if not rows or min(rows) < 1:
        raise ValueError(f"rows must be one or more positive numbers, not {list(rows)}")
    start = time.perf_counter()
    rows = sorted(set(rows))
    report = Report(precision)
    with torch.no_grad():
        for shape, layers in _layers_by_shape(model, skip).items():
            measured = report.shapes[shape] = Measured(len(layers))
            size = shape.out_features * (shape.in_features * _ITEM_BYTES[precision] + 4 * (precision == "int8"))
            report.bytes.update((names[0], size) for names in layers.values())
            factories = linear_kernels(precision, shape.in_features)
            timed = list(layers)[:_TIMED_LAYERS]
            key = (shape, precision, len(timed), *rows, *factories, torch.get_num_threads())
            if key not in _measured_times:
                _measured_times[key] = _measure_all(timed, factories, precision, rows)
            measured.times = _measured_times[key]
            del timed  # otherwise the weights of these layers stay in memory
            _pack_shape(model, layers, precision, factories, measured, in_panels)
    report.seconds = time.perf_counter() - start
    return report


def _layers_by_shape(
    model: nn.Module, skip: Callable[[str, nn.Module], bool]
) -> dict[Shape, dict[nn.Module, list[str]]]:
    """The layers to pack, each with all its names: one module may stand in several places."""
    shapes: dict[Shape, dict[nn.Module, list[str]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        # Subclasses stay: they may add to a linear layer, and other code may read their weight.
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
    factories: dict[str, LinearKernelFactory],
    measured: Measured,
    in_panels: Callable[[str], bool],
) -> None:
    """Choose the kernels for layers of one shape, and replace each layer. Empties `layers`, to free the weights."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    need_panels = {module for module, names in layers.items() if PANELS in factories and any(map(in_panels, names))}
    measured.chosen = _choose(measured.times, PANELS if need_panels else None)
    while layers:
        module, names = layers.popitem()
        kernels = {*measured.chosen.values(), *((PANELS,) if module in need_panels else ())}
        chosen = {name: factories[name] for name in kernels}
        packed = _packed(module, _source(module, precision), chosen, measured, dtype)
        for name in names:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, packed)


def _packed(
    module: Any,
    source: tuple[Tensor, Tensor | None, Tensor | None],
    factories: dict[str, LinearKernelFactory],
    measured: Measured,
    dtype: torch.dtype,
) -> PackedLinear:
    kernels = {name: make(*source) for name, make in factories.items()}
    # Not the true weight, whose memory is to be freed: transformers' T5 asks for the type of a layer's weight.
    weight = torch.empty(source[0].shape, dtype=module.weight.dtype, device="meta")
    packed = PackedLinear(source[0].shape[1], source[0].shape[0], weight, source[2])
    packed.train(module.training)
    packed._dtype = dtype
    packed.panels = next((kernel.weight for kernel in kernels.values() if isinstance(kernel, PackedMatmul)), None)
    for count, name in measured.chosen.items():
        packed._kernels += [kernels[name]] * (count + 1 - len(packed._kernels))
    return packed


def _source(module: Any, precision: Precision) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A layer's weight [out, in] as the kernels take it, its scales [out] (int8) and its bias [out]."""
    weight: Tensor = module.weight.detach()
    if type(module) is Conv1D:
        weight = weight.t()
    bias: Tensor | None = None if module.bias is None else module.bias.detach()
    if precision != "int8":
        dtype = torch.float32 if precision == "float32" else torch.bfloat16
        return weight.to(dtype).contiguous(), None, None if bias is None else bias.to(dtype)
    return *quantize(weight.float()), None if bias is None else bias.float()


def _measure_all(
    layers: Sequence[nn.Module], factories: dict[str, LinearKernelFactory], precision: Precision, rows: Sequence[int]
) -> dict[int, dict[str, float]]:
    """The times of layers of one shape, in microseconds a layer, by the number of rows and the name of the kernel."""
    sources = [_source(layer, precision) for layer in layers]
    weight = sources[0][0]
    dtype = torch.float32 if precision == "int8" else weight.dtype
    timed = {name: [make(*source) for source in sources] for name, make in factories.items()}
    generator = torch.Generator().manual_seed(0)
    inputs = {count: torch.randn(count, weight.shape[1], generator=generator).to(dtype) for count in rows}
    return {count: _measure(timed, x) for count, x in inputs.items()}


def _measure(timed: dict[str, list[LinearKernel]], x: Tensor) -> dict[str, float]:
    """The time of a layer for one input, in microseconds, by the name of the kernel."""
    runs: dict[str, list[float]] = {}
    for name, kernels in timed.items():
        runs[name] = []
        kernels[0](x)  # the first call makes oneDNN generate its kernel
    end = time.perf_counter() + _BUDGET
    for _ in range(_REPEATS):
        for name, kernels in timed.items():
            if runs[name] and min(runs[name]) > 2 * min(min(times) for times in runs.values() if times):
                continue  # the time of a slow kernel need not be exact
            for kernel in kernels:
                start = time.perf_counter()
                if start > end and runs[name]:
                    break
                kernel(x)
                runs[name].append((time.perf_counter() - start) * 1e6)
    # The least, not the median: where other processes run, most calls may have waited for a processor.
    return {name: min(times) for name, times in runs.items()}


def _choose(times: dict[int, dict[str, float]], main: str | None = None) -> dict[int, str]:
    """The kernel for each number of rows. A second one beside `main`, or the best overall, must earn its copy."""
    best = {rows: min(by_kernel.values()) for rows, by_kernel in times.items()}
    names = next(iter(times.values()))
    if main is None:
        main = min(names, key=lambda name: sum(by_kernel[name] / best[rows] for rows, by_kernel in times.items()))
    return {
        rows: main if by_kernel[main] * _WORTH_A_COPY <= best[rows] else min(by_kernel, key=by_kernel.__getitem__)
        for rows, by_kernel in times.items()
    }


def _runs_each_step(name: str) -> bool:
    """Whether a decoding step calls the layer of this name."""
    if "encoder" in name.split("."):
        return False
    parts = set(name.split("."))
    return not (parts & {"encoder_attn", "EncDecAttention"} and parts & {"k_proj", "v_proj", "k", "v"})
