"""Programs for a CPU, operation by operation, against plain torch; how many threads there are changes no bit."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sidelight.kernels.cpu.program import (
    Attention,
    PackedMatmul,
    PackedWeight,
    Program,
    is_supported,
    keep,
    pack_weight,
)
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(), reason="no programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]

NAN, INFINITY = float("nan"), float("inf")
PRECISIONS = ("float32", pytest.param("int8", marks=pytest.mark.skipif(not is_supported(of_bytes=True), reason="no")))
# Rows, and how many numbers go in and come out.
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
    (3, 5, 1100),  # more panels than pieces
    (7, 7, 8500),
    # Around what is multiplied as matrices, of bytes: 16 rows and more, of whole registers.
    (15, 64, 64),
    (16, 64, 65),
    (17, 96, 64),
    (31, 192, 130),
    (32, 512, 64),
    (65, 128, 200),
]
ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, NAN)


class Layer(NamedTuple):
    """A linear layer, and what packs it and says what comes of it: to the bit for int8."""

    weight: Tensor
    channels: Tensor | None
    bias: Tensor | None

    @property
    def panels(self) -> PackedWeight:
        return pack_weight(*self)

    def __call__(self, x: Tensor) -> Tensor:
        if self.channels is None:
            return F.linear(x, self.weight, self.bias)
        scale = x.abs().amax(-1, True) * torch.tensor(1 / 127)
        whole = (x / scale).nan_to_num().round().long()
        result = (whole @ self.weight.long().T).float() * self.channels * scale
        return result if self.bias is None else result + self.bias

    @property
    def double(self) -> Layer:
        return Layer(*(None if each is None else each.double() for each in self))


def make_layer(inner: int, size: int, precision: str, bias: bool = True) -> Layer:
    biases = torch.randn(size) if bias else None
    if precision == "float32":
        return Layer(torch.randn(size, inner), None, biases)
    weight = torch.randint(-127, 128, (size, inner), dtype=torch.int8)
    weight[0] = 127
    return Layer(weight, torch.rand(size) / 100 + 1e-3, biases)


def multiply(x: Tensor, layer: Layer, **options) -> Tensor:
    out = unwritten(len(x), layer.panels.size)
    program = Program(len(x))
    program.product(x, layer.panels, out, **options)
    program.run(len(x))
    return out


def assert_close(result: Tensor, exact: Tensor, plain: Tensor) -> None:
    """As near to float64 as plain torch in float32 is, but for a millionth of the greatest number."""
    budget = (plain - exact).abs().max() + 1e-6 * exact.abs().max()
    assert (result - exact).abs().max() <= budget  # NaN is not


# ---- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "inner", "size"), SHAPES)
def test_products(rows, inner, size, precision, bias):
    layer, x = make_layer(inner, size, precision, bias), torch.randn(rows, inner)
    for result in (multiply(x, layer), PackedMatmul(layer.panels)(x), PackedMatmul(layer.panels)(x[:, None])[:, 0]):
        if precision == "int8":
            assert torch.equal(result, layer(x))
        else:
            assert_close(result, layer.double(x.double()), layer(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("inner", "size"), [(1, 1), (67, 65), (512, 128)])
def test_a_row_is_the_same_whatever_its_neighbours(inner, size, precision):
    layer, x = make_layer(inner, size, precision), torch.randn(13, inner)
    alone = torch.cat([multiply(row[None], layer) for row in x])
    for count in range(1, 14):
        wide = x[:count] * 10.0 ** torch.randint(-3, 4, (count, 1))
        for place in {0, count // 2, count - 1}:
            wide[place] = x[place]
            assert torch.equal(multiply(wide, layer)[place], alone[place])
        assert torch.equal(multiply(x[:count], layer), alone[:count])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_the_same_in_tiles_and_as_matrices(precision):
    layer, x, added = make_layer(128, 70, precision), torch.randn(66, 128), torch.randn(66, 70)
    alone = torch.cat([multiply(row[None], layer, added=more[None]) for row, more in zip(x, added, strict=True)])
    for count in (15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 66):
        for first in (0, 66 - count):
            some = slice(first, first + count)
            assert torch.equal(multiply(x[some], layer, added=added[some]), alone[some])


@pytest.mark.skipif(not is_supported(of_bytes=True), reason="no int8")
def test_bytes_are_summed_exactly_and_halves_go_to_the_even():
    """Sums beyond 16 bits, and beyond what float32 has whole; a scale of 1, so that halves are halves."""
    layer = make_layer(2101, 67, "int8")
    layer.weight[1] = -127
    x = torch.stack([torch.full((2101,), 127.0), torch.full((2101,), -127.0), torch.arange(2101) % 254 - 126.5])
    x[2, 0] = 127
    assert (layer(x)[2:] != layer._replace(bias=None)(x.ceil())[2:] + layer.bias).any()
    assert torch.equal(multiply(x, layer), layer(x))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("rows", "inner", "size"), [(1, 3, 64), (7, 65, 67), (13, 33, 128), (6, 64, 3), (18, 64, 67), (35, 128, 128)]
)
def test_activations_and_what_is_added_behind_them(rows, inner, size, activation, precision):
    layer, x, added = make_layer(inner, size, precision), torch.randn(rows, inner), torch.randn(rows, size)
    act = ACTIVATIONS[activation]
    exact = act(layer(x).double() if precision == "int8" else layer.double(x.double()))
    assert_close(multiply(x, layer, activation=activation), exact, act(layer(x)))
    assert_close(multiply(x, layer, activation=activation, added=added), exact + added, act(layer(x)) + added)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(activation):
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-1e30, -1e3, -89, -1e-30, 0, 1e-30, 89, 1e3, 1e30])])
    one, act = Layer(torch.ones(1, 1), None, None), ACTIVATIONS[activation]
    result, exact = multiply(x[:, None], one, activation=activation)[:, 0], act(x.double())
    assert ((result - exact).abs() <= 1e-6 * exact.abs().clamp(min=1)).all()
    bad = multiply(torch.tensor([[NAN], [INFINITY]]), one, activation=activation)
    assert bad[0].isnan()
    assert bad[1] == INFINITY


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("size", [64, 67])
@pytest.mark.parametrize(("rows", "inner"), [(7, 33), (21, 64)])
def test_rows_of_wider_tensors(rows, inner, size, activation, precision):
    layer = make_layer(inner, size, precision)
    x, out, added = torch.randn(rows, 100), unwritten(rows, 200), torch.randn(rows, 100)
    read, more = x[:, 5 : 5 + inner], added[:, 3 : 3 + size]
    program = Program(rows)
    program.product(read, layer.panels, out[:, 9 : 9 + size], activation=activation, added=more)
    program.run(rows)
    expected = multiply(read.clone(), layer, activation=activation) + more
    assert torch.equal(out[:, 9 : 9 + size], expected)
    assert out[:, :9].isnan().all()
    assert out[:, 9 + size :].isnan().all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [NAN, INFINITY, 0.0])
@pytest.mark.parametrize("size", [64, 67])
@pytest.mark.parametrize(("rows", "inner"), [(8, 33), (20, 64)])
def test_what_is_no_number_stays_in_its_row(rows, inner, size, value, precision):
    layer, x = make_layer(inner, size, precision), torch.randn(rows, inner)
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


def test_only_so_many_rows_are_written():
    layer, x, out = make_layer(8, 67, "float32"), torch.randn(9, 8), unwritten(9, 67)
    program = Program(9)
    program.product(x, layer.panels, out)
    program.run(4)
    assert torch.equal(out[:4], multiply(x[:4], layer))
    assert out[4:].isnan().all()
    for count in (0, 10):
        with pytest.raises(ValueError, match="count"):
            program.run(count)


def test_another_input():
    layer, x, other, out = make_layer(8, 67, "float32"), torch.randn(3, 8), torch.randn(3, 20), unwritten(3, 67)
    program = Program(3)
    program.product(x, layer.panels, out)
    program.run(3, x=other[:, 4:12])
    assert torch.equal(out, multiply(other[:, 4:12], layer))


def test_another_input_is_for_one_run_alone():
    layer, x, other, out = make_layer(8, 67, "float32"), torch.randn(3, 8), torch.randn(3, 8), unwritten(3, 67)
    program = Program(3)
    program.product(x, layer.panels, out)
    program.run(3, x=other)
    program.run(3)
    assert torch.equal(out, multiply(x, layer))


@pytest.mark.parametrize(
    ("changed", "precision"),
    [
        *((part, "float32") for part in (None, slice(0, 33), slice(8, 20))),
        *((part, "int8") for part in (None, slice(0, 33), slice(0, 8), slice(8, 20))),
    ],
)
def test_products_that_read_the_same(changed, precision):
    """Which others may have written between them."""
    if not is_supported(of_bytes=precision == "int8"):
        pytest.skip("no int8")
    layers, x, outs = [make_layer(33, 67, precision) for _ in range(2)], torch.randn(7, 33), unwritten(2, 7, 67)
    expected, one = [multiply(x, layers[0])], torch.ones(33)
    program = Program(7)
    program.product(x, layers[0].panels, outs[0])
    if changed is not None:
        part = x[:, changed]
        program.normalize(part, one, one, 1e-5, part)
    program.product(x, layers[1].panels, outs[1])
    program.run(7)
    expected.append(multiply(x, layers[1]))  # as it is by now
    assert torch.equal(outs, torch.stack(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_do_not_write_where_they_read(precision):
    program, x, out = Program(20), torch.randn(20, 64), unwritten(20, 128)
    panels = make_layer(64, 64, precision).panels
    for of_x, added in ((x, out[:, 64:]), (out[:, 64:], None)):
        with pytest.raises(ValueError, match="out"):
            program.product(of_x, panels, out[:, :64], added=added)


def test_weights_of_other_types():
    for weight, channels in ((torch.zeros(2, 2).half(), None), (torch.zeros(2, 2), torch.ones(2))):
        with pytest.raises(ValueError, match="weight"):
            pack_weight(weight, channels)


# ---- norms, embeddings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("offset", "epsilon"), [(0.0, 1e-5), (0.0, 0.5), (1e4, 1e-5)])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (4, 3), (5, 33), (13, 64), (9, 67), (2, 512)])
def test_norms(rows, width, offset, epsilon, in_place):
    wide, weight, bias = torch.randn(rows, width + 9) + offset, torch.randn(width), torch.randn(width)
    wide[0] = 0.1 + offset  # nothing but the bias is left of it
    x = wide[:, 4 : 4 + width]
    x_double = x.double()
    exact = F.layer_norm(x_double, (width,), weight.double(), bias.double(), epsilon)
    plain, before = F.layer_norm(x, (width,), weight, bias, epsilon), wide.clone()
    out = x if in_place else unwritten(rows, width)
    program = Program(rows)
    program.normalize(x, weight, bias, epsilon, out)
    program.run(rows)
    # What rounds the mean is as large as numbers are, and grows as they do.
    rounding = before.abs().amax(1) / (x_double.var(1, correction=0) + epsilon).sqrt() * weight.abs().max()
    assert ((out - exact).abs().amax(1) <= (plain - exact).abs().amax(1) + 1e-6 * (rounding + exact.abs().max())).all()
    wide[:, 4 : 4 + width] = before[:, 4 : 4 + width]
    assert torch.equal(wide, before)


def test_a_norm_of_what_is_no_number_stays_in_its_row():
    x, weight, bias, out = torch.randn(9, 33), torch.randn(33), torch.randn(33), unwritten(9, 33)
    x[2, 32], x[7, 0] = NAN, INFINITY
    program = Program(9)
    program.normalize(x, weight, bias, 1e-5, out)
    program.run(9)
    assert torch.equal(out.isnan().any(1), ~x.isfinite().all(1))
    assert torch.equal(out.isnan().all(1), ~x.isfinite().all(1))


@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize(("count", "first", "width"), [(1, 0, 1), (5, 2, 33), (9, 0, 64)])
def test_embeddings(count, first, width, other):
    table, (positions, of_other) = torch.randn(50, width), torch.randn(2, 20, width)
    ids, lengths = torch.randint(0, 50, (count, 1)), torch.randint(0, 20, (first + count, 1))
    ids[count // 2] = 3
    out = unwritten(count, width)
    program = Program(count)
    program.embed(ids, table, 1.5, positions, lengths, out, other=(3, of_other) if other else None)
    program.run(count, first=first)
    at = lengths[first:, 0]
    expected = table[ids[:, 0]] * 1.5 + torch.where((ids == 3) & other, of_other[at], positions[at])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


# ---- threads --------------------------------------------------------------------------------------------------------


class Steps:
    """Layers with all that a step has, each of which needs the one before."""

    def __init__(self, layers: int, precision: str, count: int = 9, width: int = 136) -> None:
        heads = 4
        self.x, self.program, self.lengths = torch.randn(count, width), Program(count), torch.randint(1, 20, (count, 1))
        self.caches = torch.randn(2, count, heads, 20, width // heads)
        self.hidden, self.shares = unwritten(count, width), unwritten(count, heads, 24)
        self.kept = unwritten(count, 1, 24, heads)
        mixed, wide, normal = (self.program.room(size) for size in (width, 2 * width, width))
        attention = Attention(*self.caches, self.lengths, 0.2)
        self.program.normalize(self.x, torch.ones(width), torch.zeros(width), 1e-5, self.hidden)
        for _ in range(layers):
            panels = [
                pack_weight(*make_layer(inner, size, precision))
                for inner, size in ((width, width), (width, 2 * width), (2 * width, width))
            ]
            self.program.product(self.hidden, panels[0], normal)
            self.program.attend(normal, attention, self.shares, mixed)
            self.program.product(mixed, panels[1], wide, activation="gelu")
            self.program.product(wide, panels[2], normal, added=self.hidden)
            self.program.normalize(normal, torch.ones(width), torch.zeros(width), 1e-5, self.hidden)

    def run(self, count: int) -> tuple[Tensor, ...]:
        """Its results for so many rows."""
        for tensor in (self.hidden, self.shares, self.kept):
            tensor.fill_(NAN)
        then = np.stack([keep(self.shares, self.kept, 0, None, is_source=True)])
        self.program.run(count, shown_source=24, then=then)
        return tuple(each[:count].clone() for each in (self.hidden, self.shares, self.kept))

    def is_as(self, expected: tuple[Tensor, ...]) -> bool:
        return all(map(torch.equal, self.run(len(expected[0])), expected))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("width", "counts"), [(136, (1, 4, 9)), (128, (16, 33))])  # the latter as matrices
def test_more_threads_change_nothing(width, counts, precision):
    steps = Steps(3, precision, counts[-1], width)
    torch.set_num_threads(1)
    alone = {count: steps.run(count) for count in counts}
    assert all(tensor.isfinite().all() for some in alone.values() for tensor in some)
    for threads in (2, 4, 9, 12, 1):  # some share a part
        torch.set_num_threads(threads)
        for _ in range(20):
            assert all(steps.is_as(expected) for expected in alone.values())


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("threads", [2, 4])
def test_programs_at_the_same_time(threads):
    """Who meets the team at work runs alone. Pieces of one program must not be taken for those of a longer one."""
    torch.set_num_threads(1)
    made = [[Steps(layers, "float32") for layers in (1, 4)] for _ in range(3)]
    alone = [[(steps, steps.run(count)) for steps in some for count in (9, 2)] for some in made]
    torch.set_num_threads(threads)
    right: list[bool] = []

    def work(some: list[tuple[Steps, tuple[Tensor, ...]]]) -> None:
        with torch.inference_mode():  # as the thread may be in that has made them
            right.append(all(steps.is_as(expected) for _ in range(500) for steps, expected in some))

    workers = [threading.Thread(target=work, args=(some,)) for some in alone]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True] * len(workers)
