"""What the tests of `rows` and `decode` share: tensors that hurt, results that show what nobody wrote, comparisons."""

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
# How far from float64 a row may be, whatever the type: all count in float32, and the truth is computed from the halves
# themselves.
TOLERANCE = 1e-6
REDUCTIONS = sorted(truth.FOLDS)


@dataclass
class Layer:
    """Queries, keys and values, and what decides who sees whom, as tensors and as the truth takes it."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rule: dict[str, Any] = field(default_factory=dict)

    @property
    def scoring(self) -> AttentionParams:
        return AttentionParams(**self.rule)

    def probabilities(self, seen: np.ndarray | None = None) -> np.ndarray:
        """float64 `[B, H, T, S]`; `seen`, `[B, S]`, hides more keys."""
        rule = {name: numpy(value) if isinstance(value, torch.Tensor) else value for name, value in self.rule.items()}
        scores = truth.scores(numpy(self.query), numpy(self.key), **rule)
        return truth.softmax(scores if seen is None else np.where(seen[:, None, None], scores, -np.inf))


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy() if tensor.dtype == torch.bool else tensor.double().numpy()


def make_layer(batch, heads, key_heads, queries, keys, width, dtype=torch.float32, seed=0, **rule) -> Layer:
    """Strides as transformers has them: heads beside one another, then transposed."""
    random = torch.Generator().manual_seed(seed)

    def made(count, length):
        return torch.randn(batch, length, count, width, generator=random).to(dtype).transpose(1, 2)

    layer = Layer(made(heads, queries), made(key_heads, keys), made(key_heads, keys))
    layer.rule = {"scale": width**-0.5, **rule}
    return layer


def picked(result: AttentionTensors, columns: Sequence[int]) -> AttentionTensors:
    """Some columns of a result, in this order."""
    values, scales, positions = (None if t is None else t[..., list(columns)] for t in result[:3])
    assert values is not None
    return result._replace(values=values, scales=scales, positions=positions)


def poisoned(*shape, **options) -> AttentionTensors:
    """A result that shows what is left unwritten: NaN, or numbers that are nobody's."""
    result = new_attention_tensors(*shape, **options)
    for tensor in result[:4]:
        if tensor is not None:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    return result


def assert_is(result: AttentionTensors, expected: np.ndarray, tolerance: float) -> None:
    """Compares any encoding with float64 rows `[B, T, S, C]`."""
    values = result.values.double().numpy()
    if result.top_k:
        numbers, _ = truth.top(expected, result.top_k)
        positions = result.positions.numpy()
        assert positions.min() >= 0
        # Positions by their numbers, as numbers that are all but equal may change places.
        np.testing.assert_allclose(np.take_along_axis(expected, positions, 2), numbers, atol=tolerance, rtol=0)
        assert (np.diff(np.sort(positions, 2), axis=2) > 0).all()
        expected = numbers
    if result.scales is None:
        half = 5e-4 * max(1.0, np.abs(expected).max()) if result.values.dtype == torch.float16 else 0
        np.testing.assert_allclose(values, expected, atol=tolerance + half, rtol=0)
        return
    scales = result.scales.double().numpy()[:, :, None]
    np.testing.assert_allclose(scales * 255, expected.max(2, keepdims=True), atol=tolerance, rtol=1e-6)
    assert (np.abs(values * scales - expected) <= scales * 0.5001 + tolerance).all()


def tolerance_of(expected: np.ndarray, how: dict[str, Any], layers: int) -> float:
    """How far from float64 rows of so many layers may be: folds add up their members' errors."""
    return TOLERANCE * (max(1.0, np.abs(expected).max()) * layers + 1) if how else TOLERANCE


@st.composite
def rules(draw, heads: int, queries: int, keys: int, batch: int) -> dict[str, Any]:
    """Anything that may decide who sees whom."""
    seed = draw(st.integers(0, 99))
    random = torch.Generator().manual_seed(seed)

    def shape():
        return [draw(st.sampled_from(sizes)) for sizes in ((1, batch), (1, heads), (1, queries))] + [keys]

    rule: dict[str, Any] = {}
    if draw(st.booleans()):
        rule["causal"] = True
        rule["first"] = draw(st.integers(0, keys))
        if draw(st.booleans()):
            rule["window"] = draw(st.integers(1, keys + 1))
    if draw(st.booleans()):
        rule["bias"] = torch.randn(shape(), generator=random)
    if draw(st.booleans()):
        rule["softcap"] = draw(st.sampled_from([0.5, 2.0, 50.0]))
    kind = draw(st.sampled_from(["none", "bool", "additive"]))
    if kind != "none":
        hidden = torch.rand(shape(), generator=random) < draw(st.sampled_from([0.2, 0.9]))
        rule["mask"] = ~hidden if kind == "bool" else torch.zeros(hidden.shape).masked_fill(hidden, float("-inf"))
    return rule


@st.composite
def parts(draw, heads: int) -> tuple[list[LayerSpec], dict[str, Any], int]:
    """What up to three layers give: their parts, how the truth is told, and the number of columns."""
    count = draw(st.integers(1, 3))
    over_heads = draw(st.sampled_from([None, *REDUCTIONS]))
    if over_heads is None:
        return [LayerSpec(column=heads * i) for i in range(count)], {}, heads * count
    how: dict[str, Any] = {"over_heads": over_heads}
    weights = None
    if over_heads in ("mean", "sum") and draw(st.booleans()):
        weights = (*(draw(st.sampled_from([0.0, 0.5, 1.0, 3.0])) for _ in range(heads - 1)), 1.5)
    form = draw(st.sampled_from(["layers apart", "layers folded", "as one"]))
    part = LayerSpec(over_heads=over_heads, weights=weights)
    if form == "layers apart":
        return [part._replace(column=i) for i in range(count)], how | {"weights": weights}, count
    if form == "as one":
        part = part._replace(over_layers=over_heads, as_one=True, count=count * (sum(weights) if weights else heads))
        how |= {"as_one": True, "weights": None if weights is None else weights * count}
    else:
        over_layers = draw(st.sampled_from(REDUCTIONS))
        part = part._replace(over_layers=over_layers, layer_count=count)
        how |= {"over_layers": over_layers, "weights": weights}
    return [part._replace(first=i == 0, last=i == count - 1) for i in range(count)], how, 1


# With top-k or without it; more than 32 are sorted rather than picked.
ENCODINGS = st.sampled_from(
    [("float32", 0), ("float16", 0), ("uint8", 0), ("float32", 3), ("uint8", 5), ("float32", 40)]
)
