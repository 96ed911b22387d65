"""Shared by the tests of `rows` and `decode`: inputs, outputs that show unwritten numbers, comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import attention_truth as truth
import numpy as np
import torch
from hypothesis import strategies as st
from sidelight.kernels import AttentionParams, AttentionTensors, LayerSpec, new_attention_tensors

IMPLS = ["triton", "reference"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # of queries, keys and values
# The greatest distance of a row from float64, for all dtypes: kernels compute in float32, and the truth is computed
# from the same halves.
TOLERANCE = 1e-6
REDUCTIONS = sorted(truth.REDUCE)


@dataclass
class Layer:
    """Queries, keys and values, and the options of `AttentionParams`, which the truth takes, too."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> AttentionParams:
        return AttentionParams(**self.options)

    def probabilities(self) -> np.ndarray:
        """Returns float64 `[B, H, T, S]`."""
        options = {
            name: numpy(value) if isinstance(value, torch.Tensor) else value for name, value in self.options.items()
        }
        return truth.softmax(truth.scores(numpy(self.query), numpy(self.key), **options))


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy() if tensor.dtype == torch.bool else tensor.double().numpy()


def make_layer(batch, heads, key_heads, queries, keys, width, dtype=torch.float32, seed=0, **options) -> Layer:
    """Makes a layer with the strides of transformers: heads side by side, then transposed."""
    random = torch.Generator().manual_seed(seed)

    def draw(count, length):
        return torch.randn(batch, length, count, width, generator=random).to(dtype).transpose(1, 2)

    layer = Layer(draw(heads, queries), draw(key_heads, keys), draw(key_heads, keys))
    layer.options = {"scale": width**-0.5, **options}
    return layer


def select_columns(out: AttentionTensors, columns: Sequence[int]) -> AttentionTensors:
    """Returns some columns, in this order."""
    values, scales, positions = (None if t is None else t[..., list(columns)] for t in out[:3])
    assert values is not None
    return out._replace(values=values, scales=scales, positions=positions)


def poisoned(*shape, **options) -> AttentionTensors:
    """Allocates tensors that show what stays unwritten: NaN, or 77."""
    out = new_attention_tensors(*shape, **options)
    for tensor in out[:4]:
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    return out


def assert_is(out: AttentionTensors, expected: np.ndarray, tolerance: float) -> None:
    """Compares any encoding with float64 rows `[B, T, S, C]`."""
    values = out.values.double().numpy()
    if out.top_k:
        numbers, _ = truth.top(expected, out.top_k)
        positions = out.positions.numpy()
        assert positions.min() >= 0
        # Positions are compared by their numbers: numbers that are almost equal may change places.
        np.testing.assert_allclose(np.take_along_axis(expected, positions, 2), numbers, atol=tolerance, rtol=0)
        assert (np.diff(np.sort(positions, 2), axis=2) > 0).all()
        expected = numbers
    if out.scales is None:
        half = 5e-4 * max(1.0, np.abs(expected).max()) if out.values.dtype == torch.float16 else 0
        np.testing.assert_allclose(values, expected, atol=tolerance + half, rtol=0)
        return
    scales = out.scales.double().numpy()[:, :, None]
    np.testing.assert_allclose(scales * 255, expected.max(2, keepdims=True), atol=tolerance, rtol=1e-6)
    assert (np.abs(values * scales - expected) <= scales * 0.5001 + tolerance).all()


def tolerance_for(expected: np.ndarray, options: dict[str, Any], layers: int) -> float:
    """Returns the greatest distance from float64 of rows of so many layers: reductions add up errors."""
    return TOLERANCE * (max(1.0, np.abs(expected).max()) * layers + 1) if options else TOLERANCE


@st.composite
def draw_options(draw, heads: int, queries: int, keys: int, batch: int) -> dict[str, Any]:
    """Draws any options of `AttentionParams` but the scale."""
    seed = draw(st.integers(0, 99))
    random = torch.Generator().manual_seed(seed)

    def shape():
        return [draw(st.sampled_from(sizes)) for sizes in ((1, batch), (1, heads), (1, queries))] + [keys]

    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["causal"] = True
        options["first_position"] = draw(st.integers(0, keys))
    if draw(st.booleans()):
        options["bias"] = torch.randn(shape(), generator=random)
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 2.0, 50.0]))
    kind = draw(st.sampled_from(["none", "bool", "additive"]))
    if kind != "none":
        hidden = torch.rand(shape(), generator=random) < draw(st.sampled_from([0.2, 0.9]))
        options["mask"] = ~hidden if kind == "bool" else torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    return options


@st.composite
def draw_specs(draw, heads: int) -> tuple[list[LayerSpec], dict[str, Any], int]:
    """Draws the specs of up to three layers. Returns specs, options of `truth.columns`, and the number of columns."""
    count = draw(st.integers(1, 3))
    over_heads = draw(st.sampled_from([None, *REDUCTIONS]))
    if over_heads is None:
        return [LayerSpec(column=heads * i) for i in range(count)], {}, heads * count
    weights = None
    if over_heads in ("mean", "sum") and draw(st.booleans()):
        weights = (*(draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])) for _ in range(heads - 1)), 1.5)
    form = draw(st.sampled_from(["layers apart", "layers reduced", "all heads pooled"]))
    spec = LayerSpec(over_heads=over_heads, weights=weights)
    options: dict[str, Any] = {"over_heads": over_heads, "weights": weights}
    if form == "layers apart":
        return [spec._replace(column=i) for i in range(count)], options, count
    if form == "all heads pooled":
        divisor = count * (sum(weights) if weights else heads)
        spec = spec._replace(over_layers=over_heads, pools_all_heads=True, divisor=divisor)
        options |= {"pools_all_heads": True, "weights": None if weights is None else weights * count}
    else:
        over_layers = draw(st.sampled_from(REDUCTIONS))
        spec = spec._replace(over_layers=over_layers, num_layers=count)
        options |= {"over_layers": over_layers}
    return [spec._replace(is_first=i == 0, is_last=i == count - 1) for i in range(count)], options, 1


# Encodings, each with a top-k or 0; kernels sort more than 32 positions and select fewer.
ENCODINGS = st.sampled_from(
    [("float32", 0), ("float16", 0), ("uint8", 0), ("float32", 3), ("uint8", 5), ("float32", 40)]
)
