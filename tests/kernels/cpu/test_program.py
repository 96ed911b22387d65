"""The operations of CPU programs, one by one, against plain torch. Attention is in `test_attention`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from linear_layers import NAN, PRECISIONS, Layer, make_layer, unwritten
from sidelight.kernels.cpu import PackedMatmul, Program, is_supported
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(), reason="no programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]

INFINITY = float("inf")
# Rows, input features and output features.
SHAPES = [
    (1, 1, 1),
    (1, 512, 64),
    (5, 3, 33),
    (6, 64, 65),
    (7, 65, 67),
    (12, 33, 512),
    (13, 67, 1),
    (33, 512, 3),
    (2, 1, 128),
    (3, 5, 1100),  # more panels than tasks
    (7, 7, 8500),
    # Around what AMX multiplies, of int8: 16 rows and more, of whole registers.
    (15, 64, 64),
    (16, 64, 65),
    (17, 96, 64),
    (31, 192, 130),
    (32, 512, 64),
    (65, 128, 200),
]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def multiply(x: Tensor, layer: Layer, **options) -> Tensor:
    out = unwritten(len(x), layer.packed.out_features)
    program = Program(len(x))
    program.matmul(x, layer.packed, out, **options)
    program.run(len(x))
    return out


def assert_close(result: Tensor, exact: Tensor, plain: Tensor) -> None:
    """The result is as close to float64 as plain torch in float32, up to a millionth of the greatest number."""
    budget = (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (result - exact).abs().max() <= budget  # false for NaN


# ---- matrix products ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "in_features", "out_features"), SHAPES)
def test_matmul(rows, in_features, out_features, precision, bias):
    layer, x = make_layer(in_features, out_features, precision, bias), torch.randn(rows, in_features)
    for result in (multiply(x, layer), PackedMatmul(layer.packed)(x), PackedMatmul(layer.packed)(x[:, None])[:, 0]):
        if precision == "int8":
            assert torch.equal(result, layer(x))
        else:
            assert_close(result, layer.double(x.double()), layer(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (67, 65), (512, 128)])
def test_a_row_is_the_same_whatever_its_neighbours(in_features, out_features, precision):
    layer, x = make_layer(in_features, out_features, precision), torch.randn(13, in_features)
    alone = torch.cat([multiply(row[None], layer) for row in x])
    for count in range(1, 14):
        wide = x[:count] * 10.0 ** torch.randint(-3, 4, (count, 1))
        for place in {0, count // 2, count - 1}:
            wide[place] = x[place]
            assert torch.equal(multiply(wide, layer)[place], alone[place])
        assert torch.equal(multiply(x[:count], layer), alone[:count])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_the_same_with_vectors_and_amx(precision):
    layer, x, added = make_layer(128, 70, precision), torch.randn(66, 128), torch.randn(66, 70)
    alone = torch.cat([multiply(row[None], layer, added=addend[None]) for row, addend in zip(x, added, strict=True)])
    for count in (15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 66):
        for first in (0, 66 - count):
            rows = slice(first, first + count)
            assert torch.equal(multiply(x[rows], layer, added=added[rows]), alone[rows])


@pytest.mark.skipif(not is_supported(int8=True), reason="no int8")
def test_int8_sums_are_exact_and_halves_round_to_even():
    """Sums beyond 16 bits, and beyond the integers of float32; with a scale of 1, halves stay halves."""
    layer = make_layer(2101, 67, "int8")
    layer.weight[1] = -127
    x = torch.stack([torch.full((2101,), 127.0), torch.full((2101,), -127.0), torch.arange(2101) % 254 - 126.5])
    x[2, 0] = 127
    assert (layer(x)[2:] != layer._replace(bias=None)(x.ceil())[2:] + layer.bias).any()
    assert torch.equal(multiply(x, layer), layer(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"),
    [(1, 3, 64), (7, 65, 67), (13, 33, 128), (6, 64, 3), (18, 64, 67), (35, 128, 128)],
)
def test_activations_and_additions_after_them(rows, in_features, out_features, activation, precision):
    layer, x, added = (
        make_layer(in_features, out_features, precision),
        torch.randn(rows, in_features),
        torch.randn(rows, out_features),
    )
    act = ACTIVATIONS[activation]
    exact = act(layer(x).double() if precision == "int8" else layer.double(x.double()))
    assert_close(multiply(x, layer, activation=activation), exact, act(layer(x)))
    assert_close(multiply(x, layer, activation=activation, added=added), exact + added, act(layer(x)) + added)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_extreme_numbers(activation):
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e30, -1e3, -89, -1e-30, 0, 1e-30, 89, 1e3, 1e30])])
    identity, act = Layer(torch.ones(1, 1), None, None), ACTIVATIONS[activation]
    result, exact = multiply(x[:, None], identity, activation=activation)[:, 0], act(x.double())
    assert ((result - exact).abs() <= 1e-6 * exact.abs().clamp(min=1)).all()
    special = multiply(torch.tensor([[NAN], [INFINITY]]), identity, activation=activation)
    assert special[0].isnan()
    assert special[1] == INFINITY


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("out_features", [64, 67])
@pytest.mark.parametrize(("rows", "in_features"), [(7, 33), (21, 64)])
def test_rows_of_wider_tensors(rows, in_features, out_features, activation, precision):
    layer = make_layer(in_features, out_features, precision)
    x, out, added = torch.randn(rows, 100), unwritten(rows, 200), torch.randn(rows, 100)
    x, added = x[:, 5 : 5 + in_features], added[:, 3 : 3 + out_features]
    program = Program(rows)
    program.matmul(x, layer.packed, out[:, 9 : 9 + out_features], activation=activation, added=added)
    program.run(rows)
    expected = multiply(x.clone(), layer, activation=activation) + added
    assert torch.equal(out[:, 9 : 9 + out_features], expected)
    assert out[:, :9].isnan().all()
    assert out[:, 9 + out_features :].isnan().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [NAN, INFINITY, 0.0])
@pytest.mark.parametrize("out_features", [64, 67])
@pytest.mark.parametrize(("rows", "in_features"), [(8, 33), (20, 64)])
def test_nan_and_infinity_stay_in_their_row(rows, in_features, out_features, value, precision):
    layer, x = make_layer(in_features, out_features, precision), torch.randn(rows, in_features)
    expected = multiply(x, layer)
    x[3] = 0
    x[3, 20] = value
    result = multiply(x, layer)
    others = [row for row in range(rows) if row != 3]
    assert torch.equal(result[others], expected[others])
    if value == 0:
        assert torch.equal(result[3], layer.bias)
    else:
        assert not result[3].isfinite().any()


def test_only_the_rows_of_a_run_are_written():
    layer, x, out = make_layer(8, 67, "float32"), torch.randn(9, 8), unwritten(9, 67)
    program = Program(9)
    program.matmul(x, layer.packed, out)
    program.run(4)
    assert torch.equal(out[:4], multiply(x[:4], layer))
    assert out[4:].isnan().all()
    for count in (0, 10):
        with pytest.raises(ValueError, match=r"^num_rows:"):
            program.run(count)


def test_another_input():
    layer, x, other, out = make_layer(8, 67, "float32"), torch.randn(3, 8), torch.randn(3, 20), unwritten(3, 67)
    program = Program(3)
    program.matmul(x, layer.packed, out)
    program.run(3, x=other[:, 4:12])
    assert torch.equal(out, multiply(other[:, 4:12], layer))


def test_another_input_is_for_one_run_alone():
    layer, x, other, out = make_layer(8, 67, "float32"), torch.randn(3, 8), torch.randn(3, 8), unwritten(3, 67)
    program = Program(3)
    program.matmul(x, layer.packed, out)
    program.run(3, x=other)
    program.run(3)
    assert torch.equal(out, multiply(x, layer))


@pytest.mark.parametrize(
    ("changed", "precision"),
    [
        *((columns, "float32") for columns in (None, slice(0, 33), slice(8, 20))),
        *((columns, "int8") for columns in (None, slice(0, 33), slice(0, 8), slice(8, 20))),
    ],
)
def test_matmuls_that_read_the_same_input(changed, precision):
    """Another operation may write the input between them."""
    if not is_supported(int8=precision == "int8"):
        pytest.skip("no int8")
    layers, x, outs = [make_layer(33, 67, precision) for _ in range(2)], torch.randn(7, 33), unwritten(2, 7, 67)
    expected, one = [multiply(x, layers[0])], torch.ones(33)
    program = Program(7)
    program.matmul(x, layers[0].packed, outs[0])
    if changed is not None:
        columns = x[:, changed]
        program.layer_norm(columns, one, one, 1e-5, columns)
    program.matmul(x, layers[1].packed, outs[1])
    program.run(7)
    expected.append(multiply(x, layers[1]))  # as it is now
    assert torch.equal(outs, torch.stack(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_matmuls_refuse_to_write_where_they_read(precision):
    program, x, out = Program(20), torch.randn(20, 64), unwritten(20, 128)
    weight = make_layer(64, 64, precision).packed
    for input_, added in ((x, out[:, 64:]), (out[:, 64:], None)):
        with pytest.raises(ValueError, match=r"^out:"):
            program.matmul(input_, weight, out[:, :64], added=added)


# ---- norms, embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("offset", "epsilon"), [(0.0, 1e-5), (0.0, 0.5), (1e4, 1e-5)])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 3), (5, 33), (13, 64), (9, 67), (2, 512)])
def test_layer_norm(rows, width, offset, epsilon, in_place):
    wide, weight, bias = torch.randn(rows, width + 9).add_(offset), torch.randn(width), torch.randn(width)
    wide[0] = 0.1 + offset  # only the bias is left
    x = wide[:, 4 : 4 + width]
    x_double = x.double()
    exact = F.layer_norm(x_double, (width,), weight.double(), bias.double(), epsilon)
    plain, before = F.layer_norm(x, (width,), weight, bias, epsilon), wide.clone()
    out = x if in_place else unwritten(rows, width)
    program = Program(rows)
    program.layer_norm(x, weight, bias, epsilon, out)
    program.run(rows)
    # The rounding of the mean is proportional to the numbers.
    rounding = before.abs().amax(1) / (x_double.var(1, correction=0) + epsilon).sqrt() * weight.abs().max()
    assert ((out - exact).abs().amax(1) <= (plain - exact).abs().amax(1) + 1e-6 * (rounding + exact.abs().max())).all()
    wide[:, 4 : 4 + width] = before[:, 4 : 4 + width]
    assert torch.equal(wide, before)


def test_nan_and_infinity_of_a_norm_stay_in_their_row():
    x, weight, bias, out = torch.randn(9, 33), torch.randn(33), torch.randn(33), unwritten(9, 33)
    x[2, 32], x[7, 0] = NAN, INFINITY
    program = Program(9)
    program.layer_norm(x, weight, bias, 1e-5, out)
    program.run(9)
    assert torch.equal(out.isnan().any(1), ~x.isfinite().all(1))
    assert torch.equal(out.isnan().all(1), ~x.isfinite().all(1))


@pytest.mark.parametrize("has_special", [True, False])
@pytest.mark.parametrize(("count", "first", "width"), [(1, 0, 1), (5, 2, 33), (9, 0, 64)])
def test_embeddings(count, first, width, has_special):
    table, (positions, special_positions) = torch.randn(50, width), torch.randn(2, 20, width)
    ids, lengths = torch.randint(0, 50, (count, 1)), torch.randint(0, 20, (first + count, 1))
    ids[count // 2] = 3
    out = unwritten(count, width)
    program = Program(count)
    program.embed(ids, table, 1.5, positions, lengths, out, special=(3, special_positions) if has_special else None)
    program.run(count, first_slot=first)
    at = lengths[first:, 0]
    expected = table[ids[:, 0]] * 1.5 + torch.where((ids == 3) & has_special, special_positions[at], positions[at])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
