"""Reductions and strides of `layout_into`, Triton and reference, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import layout
from sidelight.kernels import REDUCTIONS, Reduction
from torch import Tensor

IMPLS = ("reference", "triton")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ROUNDING = 2**-11 * 1.001  # the relative error of one rounding to float16

NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: np.add.reduce(x) / len(x),
    "max": lambda x: np.maximum.reduce(x),
    "min": lambda x: np.minimum.reduce(x),
    "sum": lambda x: np.add.reduce(x),
    "prod": lambda x: np.multiply.reduce(x),
    "absmax": lambda x: np.take_along_axis(x, np.abs(np.where(np.isnan(x), 0, x)).argmax(0)[None], 0)[0],
    "l2": lambda x: np.sqrt(np.add.reduce(x**2)),
}

# B, H, Q, K, and the number of layers
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 8, 1, 30, 6),  # a decode step
    (3, 12, 1, 31, 7),
    (1, 5, 1, 507, 2),
    (2, 6, 7, 13, 3),
    (1, 1, 5, 11, 4),
    (2, 17, 3, 1, 2),  # K = 1, and more heads than a tile has columns
    (1, 3, 2, 37, 19),  # more layers than a tile has columns
    (1, 7, 20, 48, 2),  # several tiles of positions
]


def make(shape: Sequence[int], dtype: torch.dtype = F32, seed: int = 0) -> list[Tensor]:
    *axes, count = shape
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(axes, generator=generator) * 2 - 1).to(dtype) for _ in range(count)]


def truth(layers: Sequence[Tensor], over_heads: str | None, over_layers: str | None) -> Tensor:
    """Returns float64 rows: heads are reduced first, then layers."""
    x = np.stack([layer.double().numpy() for layer in layers])  # [L, B, H, Q, K]
    if over_heads is None:
        return torch.from_numpy(np.einsum("lbhqk->bqklh", x))
    x = NUMPY[over_heads](np.moveaxis(x, 2, 0))  # [L, B, Q, K]
    return torch.from_numpy(np.moveaxis(x, 0, 3) if over_layers is None else NUMPY[over_layers](x))


def check(
    layers: Sequence[Tensor],
    over_heads: Reduction | None,
    over_layers: Reduction | None,
    impl: str,
    encoding: str = "float32",
    tolerance: float = 3e-6,
    absolute: float = 3e-6,
) -> Tensor:
    out = layout(layers, over_heads=over_heads, over_layers=over_layers, encoding=encoding, impl=impl)
    expected = truth(layers, over_heads, over_layers)
    assert out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=absolute, equal_nan=True)
    return out


@pytest.mark.parametrize("impl", IMPLS)
class TestAgainstFloat64:
    @pytest.mark.covering(2)
    @pytest.mark.parametrize("over_heads", [None, *REDUCTIONS])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_heads(self, shape: tuple[int, ...], over_heads: Reduction | None, impl: str) -> None:
        exact = over_heads in (None, "max", "min", "absmax")
        check(make(shape), over_heads, None, impl, tolerance=0 if exact else 3e-6, absolute=0 if exact else 3e-6)

    @pytest.mark.covering(2)
    @pytest.mark.parametrize("over_layers", REDUCTIONS)
    @pytest.mark.parametrize("over_heads", REDUCTIONS)
    def test_heads_then_layers(self, over_heads: Reduction, over_layers: Reduction, impl: str) -> None:
        check(make((2, 5, 1, 23, 7)), over_heads, over_layers, impl)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_heads_then_layers_of_every_shape(self, shape: tuple[int, ...], impl: str) -> None:
        check(make(shape), "mean", "max", impl)
        check(make(shape), "min", "l2", impl)

    @pytest.mark.covering(2)
    @pytest.mark.parametrize("over_heads", [None, *REDUCTIONS])
    @pytest.mark.parametrize(
        ("dtype", "encoding", "tolerance", "shape"),
        [
            (F16, "float32", 3e-6, (2, 12, 3, 31, 3)),
            (BF16, "float32", 3e-6, (2, 12, 3, 31, 3)),
            (F32, "float16", ROUNDING, (1, 8, 1, 507, 2)),
            (F16, "float16", ROUNDING, (2, 6, 5, 7, 7)),
            (BF16, "float16", ROUNDING, (1, 5, 3, 64, 1)),
        ],
        ids=str,
    )
    def test_precision(
        self,
        dtype: torch.dtype,
        encoding: str,
        tolerance: float,
        shape: tuple[int, ...],
        over_heads: Reduction | None,
        impl: str,
    ) -> None:
        """Halves as input cost nothing; halves as output cost one rounding, also of subnormal numbers."""
        layers = make(shape, dtype)
        check(layers, over_heads, None, impl, encoding, tolerance)
        if over_heads is not None:
            check(layers, over_heads, "mean", impl, encoding, tolerance)

    @pytest.mark.covering(2)
    @pytest.mark.parametrize("over_heads", REDUCTIONS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(F16, 1e-6), (BF16, 1e-6)], ids=str)
    def test_error_budget(self, dtype: torch.dtype, tolerance: float, over_heads: Reduction, impl: str) -> None:
        """Never further from float64 than plain torch in the same precision."""
        layers = make((2, 16, 1, 53, 3), dtype)
        expected = truth(layers, over_heads, "mean")
        stacked = torch.stack(layers)
        plain = {
            "mean": lambda: stacked.mean(2),
            "max": lambda: stacked.amax(2),
            "min": lambda: stacked.amin(2),
            "sum": lambda: stacked.sum(2),
            "prod": lambda: stacked.prod(2),
            "absmax": lambda: stacked.gather(2, stacked.abs().argmax(2, keepdim=True)).squeeze(2),
            "l2": lambda: torch.linalg.vector_norm(stacked, dim=2),
        }[over_heads]().mean(0)
        ours = layout(layers, over_heads=over_heads, over_layers="mean", impl=impl)
        assert (ours.double() - expected).abs().max() <= (plain.double() - expected).abs().max() + tolerance

    def test_the_numbers_between_the_reductions_are_float32(self, impl: str) -> None:
        """2048 + 1 is no float16, but the sum of four of them is."""
        layers = [torch.tensor([2048.0, 1.0], dtype=F16).view(1, 2, 1, 1)] * 4
        out = layout(layers, over_heads="sum", over_layers="sum", encoding="float16", impl=impl)
        assert out.item() == 8196 - 8196 % 8  # 8196 is halfway between two float16 numbers: the even one
        assert layout(layers, over_heads="sum", over_layers="sum", impl=impl).item() == 8196

    def test_many_small_heads_are_added_in_float32(self, impl: str) -> None:
        """1 + 64 times 2^-12: each alone would vanish beside 1 in float16."""
        layer = torch.full((1, 65, 1, 3), 2**-12, dtype=F16)
        layer[:, 0] = 1
        assert layout([layer], over_heads="sum", impl=impl).flatten().tolist() == [1 + 64 * 2**-12] * 3


@pytest.mark.parametrize("impl", IMPLS)
class TestStrides:
    @pytest.mark.parametrize("over_heads", [None, "mean", "absmax"])
    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.transpose(2, 3),
            lambda x: x.permute(0, 2, 3, 1),  # channels last, a layout that torch often keeps
            lambda x: x.permute(3, 2, 1, 0),
            lambda x: x[:, 1::2],
            lambda x: x[:, :, -1:],  # the newest query alone
            lambda x: x[:, :, 2:5, 1:-1],
            lambda x: x[..., ::3],
            lambda x: x[:, :1].expand(-1, 4, -1, -1),  # grouped heads
            lambda x: x[:1, :, :, :1].expand(2, -1, -1, 9),
            lambda x: x[1:, :, :, 3:4],
        ],
        ids=lambda _: "",
    )
    def test_views(self, view: Callable[[Tensor], Tensor], over_heads: Reduction | None, impl: str) -> None:
        layers = [view(layer) for layer in make((2, 6, 8, 10, 3))]
        check(layers, over_heads, None, impl)
        if over_heads is not None:
            check(layers, over_heads, "max", impl)

    def test_layers_of_different_strides(self, impl: str) -> None:
        first, second, third = make((2, 5, 4, 4, 3))
        layers = [first, second.transpose(2, 3), third.transpose(0, 1).contiguous().transpose(0, 1)]
        for over_heads in (None, "sum"):
            check(layers, over_heads, None, impl)

    def test_strides_of_axes_of_size_1_are_ignored(self, impl: str) -> None:
        x = torch.rand(30)
        layers = [x.as_strided((1, 1, 1, 30), (99, 7, 3, 1)), x.as_strided((1, 1, 1, 30), (1, 1, 1, 1))]
        check(layers, None, None, impl)

    def test_inputs_stay_unchanged(self, impl: str) -> None:
        for over_heads in (None, *REDUCTIONS):
            layers = make((1, 3, 2, 5, 2))
            layout(layers, over_heads=over_heads, impl=impl)
            assert all(torch.equal(left, right) for left, right in zip(layers, make((1, 3, 2, 5, 2)), strict=True))


@pytest.mark.parametrize("impl", IMPLS)
class TestSpecialNumbers:
    @pytest.mark.parametrize("over_heads", REDUCTIONS)
    def test_masked_rows_are_zero(self, over_heads: Reduction, impl: str) -> None:
        layers = make((2, 4, 3, 9, 3))
        for layer in layers:
            layer[:, :, 1] = 0
        for over_layers in (None, *REDUCTIONS):
            assert check(layers, over_heads, over_layers, impl)[:, 1].eq(0).all()

    @pytest.mark.parametrize("over_heads", REDUCTIONS)
    @pytest.mark.parametrize("sign", [1, -1])
    def test_all_of_one_sign(self, sign: int, over_heads: Reduction, impl: str) -> None:
        """A maximum that starts at 0 would be wrong for negative numbers, a minimum for positive numbers."""
        layers = [sign * (layer.abs() + 0.5) for layer in make((1, 3, 2, 11, 3))]
        check(layers, over_heads, None, impl)
        check(layers, over_heads, over_heads, impl)

    @pytest.mark.covering(2)
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with NumPy, which warns
    @pytest.mark.parametrize("dtype", [F32, F16, BF16])
    @pytest.mark.parametrize("over_heads", [None, *REDUCTIONS])
    def test_nan_and_infinity(self, over_heads: Reduction | None, dtype: torch.dtype, impl: str) -> None:
        """The result of every reduction but absmax is NaN where a head is NaN; for absmax NaN counts as 0."""
        layers = make((1, 5, 6, 8, 2), dtype)
        nan, inf = float("nan"), float("inf")
        layers[0][:, 0, 0] = nan
        layers[0][:, 2, 1] = nan
        layers[0][:, 4, 2] = nan
        layers[0][:, :, 3] = nan
        layers[0][:, 1:, 4] = 0
        layers[0][:, 0, 4] = nan  # before zeros: the first of equal numbers
        layers[1][:, 3, 0] = inf
        layers[1][:, 3, 1] = -inf
        layers[1][:, 1, 2] = torch.finfo(dtype).max  # less than the next number
        layers[1][:, 2, 2] = -inf
        out = check(layers, over_heads, None, impl)
        if over_heads == "absmax":
            assert not out[0, :3].isnan().any()
            assert out[0, 3:5, :, 0].isnan().all()
        elif over_heads is not None:
            assert out[0, :5, :, 0].isnan().all()
        if over_heads is not None:
            for over_layers in REDUCTIONS:
                check(layers, over_heads, over_layers, impl)

    def test_absmax_returns_the_first_of_equal_numbers(self, impl: str) -> None:
        layer = torch.tensor([[1.0, -3.0, 3.0], [2.0, 3.0, -3.0], [-2.0, 0.0, 1.0]]).view(1, 3, 1, 3)
        assert layout([layer], over_heads="absmax", impl=impl).flatten().tolist() == [2, -3, 3]
        layers = [layer[:, head : head + 1] for head in range(3)]
        assert layout(layers, over_heads="sum", over_layers="absmax", impl=impl).flatten().tolist() == [2, -3, 3]


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_inputs(data: st.DataObject, impl: str) -> None:
    draw = data.draw
    shape = [draw(st.integers(1, size)) for size in (2, 12, 4, 36, 5)]
    over_heads = draw(st.sampled_from([None, *REDUCTIONS]))
    over_layers = draw(st.sampled_from([None, *REDUCTIONS])) if over_heads else None
    encoding = draw(st.sampled_from(["float32", "float16"]))
    order = draw(st.permutations(range(4)))
    layers = make(shape, draw(st.sampled_from([F32, F16, BF16])), draw(st.integers(0, 99)))
    layers = [layer.permute(order).contiguous().permute(np.argsort(order).tolist()) for layer in layers]
    rounding = (3e-6, 3e-6) if encoding == "float32" else (ROUNDING + 3e-6, 1e-5)
    check(layers, over_heads, over_layers, impl, encoding, *rounding)


@pytest.mark.parametrize("is_large", [False, True])
def test_both_ways_of_the_reference_agree(is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference stacks small layers, and reduces large layers one by one."""
    monkeypatch.setattr("sidelight.kernels.message_layout.reference._SMALL", 0 if is_large else 2**40)
    for over_heads in REDUCTIONS:
        check(make((2, 5, 3, 7, 4)), over_heads, None, "reference")
        check(make((2, 5, 3, 7, 4)), over_heads, "mean", "reference")


@pytest.mark.parametrize("impl", IMPLS)
def test_deterministic(impl: str) -> None:
    layers = make((2, 12, 5, 33, 6))
    first, second = (layout(layers, over_heads="sum", over_layers="l2", impl=impl) for _ in range(2))
    assert torch.equal(first, second)
