"""`LinearArgmax` finds the greatest scores of a layer whose scores are all written."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels.cpu import (
    ErrorBounds,
    LinearArgmax,
    MaskedColumns,
    PackedMatmul,
    PackedWeight,
    Program,
    is_supported,
    mask_columns,
    pack_weight,
)
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(int8=True), reason="no int8 programs on this machine"),
    pytest.mark.usefixtures("seeded"),
]

NAN, INFINITY, MASKED = float("nan"), float("inf"), -float("inf")
# Output features: around panels, and around tasks of eight panels.
SIZES = [1, 3, 63, 64, 65, 130, 511, 512, 513, 3000]
# The weights of a search: float32, int8, or int8 with error bounds and the float32 weights.
KINDS = ("float32", "int8", "bounds")


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a weight in int8, and the scale of each output feature."""
    channel_scales = weight.abs().amax(1) / 127
    channel_scales[channel_scales == 0] = 1
    return (weight / channel_scales[:, None]).round().to(torch.int8), channel_scales


def pack(kind: str, weight: Tensor, bias: Tensor | None) -> PackedWeight:
    return pack_weight(weight, None, bias) if kind == "float32" else pack_weight(*quantize(weight), bias)


def make_search(kind: str, weight: Tensor, bias: Tensor | None = None) -> LinearArgmax:
    if kind != "bounds":
        return LinearArgmax(pack(kind, weight, bias))
    int8, channel_scales = quantize(weight)
    copy = int8 * channel_scales[:, None]
    errors = (weight - copy).norm(dim=1) + 1e-6 * weight.norm(dim=1)
    slack = 0.0 if bias is None else 1e-6 * float(bias.abs().max())
    bounds = ErrorBounds(weight, bias, copy.norm(dim=1), errors, slack, 1e-6)
    return LinearArgmax(pack(kind, weight, bias), bounds)


def find(search: LinearArgmax, hidden: Tensor, masked: MaskedColumns | None = None) -> tuple[Tensor, Tensor]:
    """Returns copies of the results, which the next search would overwrite."""
    columns, maxima = search(hidden, masked)
    return columns.clone(), maxima.clone()


def first_argmax(scores: Tensor) -> Tensor:
    """Returns NumPy's argmax: the first of equal numbers, and NaN as the greatest."""
    return torch.from_numpy(scores.numpy().argmax(1))


def all_scores(kind: str, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns all scores, or all estimates of scores."""
    return PackedMatmul(pack(kind, weight, bias))(hidden)


def assert_greatest(
    columns: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, is_masked: Tensor | None
) -> None:
    """Compares with float64, up to the rounding of float32."""
    exact = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    budget = hidden.double().norm(dim=1) * weight.double().norm(dim=1).max() + exact.abs().amax(1)
    if is_masked is not None:
        exact = exact.masked_fill(is_masked, MASKED)
    assert (exact.gather(1, columns[:, None])[:, 0] >= exact.amax(1) - 1e-6 * budget).all()


def shuffled_mask(is_masked: Tensor) -> MaskedColumns:
    """Returns the masked scores of a table, given in random order."""
    rows, columns = is_masked.nonzero().T
    order = torch.randperm(len(rows))
    return mask_columns(rows[order], columns[order], is_masked.shape[1])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("rows", "in_features"), [(1, 1), (5, 3), (6, 33), (7, 64), (13, 67), (20, 64), (33, 128)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_features", SIZES)
def test_finds_the_greatest(out_features, kind, rows, in_features, biased):
    weight, hidden, bias = (
        torch.randn(out_features, in_features),
        torch.randn(rows, in_features),
        torch.randn(out_features) if biased else None,
    )
    search, scores = make_search(kind, weight, bias), all_scores(kind, hidden, weight, bias)
    random = (torch.rand(rows, out_features) < 0.3).scatter(1, scores.argmax(1, keepdim=True), True)
    for is_masked in (None, random, torch.zeros_like(random)):
        left = scores if is_masked is None else scores.masked_fill(is_masked, MASKED)
        columns, maxima = search(hidden, None if is_masked is None else shuffled_mask(is_masked))
        assert torch.equal(maxima, left.amax(1))
        if kind == "bounds":
            assert_greatest(columns, hidden, weight, bias, is_masked)
        else:
            assert torch.equal(columns, first_argmax(left))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("apart", [1, 63, 64, 65, 512, 700])
def test_the_first_of_equal_scores(apart, kind):
    """Integers, whose sums are exact, and many of them equal."""
    weight = torch.randint(-2, 3, (1500, 5)).float()
    weight[0, 0] = 127  # so that int8 copies are exact or nearly exact
    weight[1500 - apart :] = weight[: apart or None][:apart]
    hidden = torch.randint(-3, 4, (9, 5)).float()
    hidden[8] = 0
    columns, _ = make_search(kind, weight)(hidden)
    expected = hidden @ weight.T if kind != "int8" else all_scores(kind, hidden, weight)
    assert torch.equal(columns, first_argmax(expected))
    for bias in (torch.zeros(1500), torch.randint(0, 2, (1500,)).float()):
        columns, _ = make_search(kind, torch.zeros(1500, 5), bias)(hidden)
        assert columns.tolist() == [int(bias.argmax())] * 9
    for column in (0, 63, 64, 700, 1499):  # twice, and not at the beginning
        weight = torch.zeros(1500, 5)
        weight[[column, min(column + apart, 1499)]] = 1
        assert make_search(kind, weight)(torch.ones(2, 5))[0].tolist() == [column] * 2


@pytest.mark.parametrize("apart", [1e-3, 1e-5])
def test_bounds_find_what_int8_alone_does_not(apart):
    hidden = torch.randn(4, 32)
    weight = hidden.sum(0) + torch.randn(32) + apart * torch.randn(3000, 32)
    columns, _ = make_search("bounds", weight)(hidden)
    assert_greatest(columns, hidden, weight, None, None)
    with pytest.raises(AssertionError):
        assert_greatest(make_search("int8", weight)(hidden)[0], hidden, weight, None, None)


@settings(deadline=None, max_examples=80, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    out_features, in_features = data.draw(st.integers(1, 1200)), data.draw(st.integers(1, 70))
    rows, kind = data.draw(st.integers(1, 14)), data.draw(st.sampled_from(KINDS))
    weight, hidden = (
        torch.randn(out_features, in_features, generator=random),
        torch.randn(rows, in_features, generator=random),
    )
    bias = data.draw(st.sampled_from([None, torch.randn(out_features, generator=random)]))
    if data.draw(st.booleans()):  # some rows and columns a hundred times as long as others
        weight *= 10 ** (torch.rand(out_features, 1, generator=random) * 2 - 1)
        hidden *= 10 ** (torch.rand(in_features, generator=random) * 2 - 1)
    share = data.draw(st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
    is_masked = torch.rand(rows, out_features, generator=random) < share
    columns, maxima = make_search(kind, weight, bias)(hidden, shuffled_mask(is_masked))
    left = all_scores(kind, hidden, weight, bias).masked_fill(is_masked, MASKED)
    assert torch.equal(maxima, left.amax(1))
    assert ((columns >= 0) & (columns < out_features)).all()
    if kind == "bounds":
        assert_greatest(columns, hidden, weight, bias, is_masked)
        assert not is_masked.gather(1, columns[:, None])[~is_masked.all(1)].any()
    else:
        assert torch.equal(columns, first_argmax(left))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [NAN, INFINITY, 0.0])
def test_nan_and_infinity_stay_in_their_row(value, kind):
    weight, bias, hidden = torch.randn(700, 33), torch.randn(700), torch.randn(8, 33)
    hidden[3] = 0
    search = make_search(kind, weight, bias)
    expected = find(search, hidden)
    hidden[3, 20] = value
    is_masked = torch.zeros(8, 700, dtype=torch.bool)
    is_masked[3, :2] = is_masked[3, int(bias.argmax())] = True
    left = all_scores(kind, hidden, weight, bias).masked_fill(is_masked, MASKED)
    columns, maxima = find(search, hidden, shuffled_mask(is_masked))
    others = [0, 1, 2, 4, 5, 6, 7]
    for result, before in zip((columns, maxima), expected, strict=True):
        assert torch.equal(result[others], before[others])
    assert columns[3] == first_argmax(left)[3]  # the column of a NaN, where there is one
    assert maxima[3].isnan() or maxima[3] == left[3].amax()
    assert bool(maxima[3].isnan()) == bool(left[3].isnan().any())


@pytest.mark.parametrize("column", [0, 63, 64, 600, 699])
def test_a_nan_score_is_found(column):
    weight, hidden = torch.randn(700, 33), torch.randn(8, 33)
    weight[[column, 699], 5] = NAN
    columns, maxima = make_search("float32", weight)(hidden)
    assert columns.tolist() == [column] * 8
    assert maxima.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("out_features", [1, 64, 700])
def test_all_scores_of_a_row_are_masked(out_features, kind):
    weight, hidden = torch.randn(out_features, 33), torch.randn(8, 33)
    search = make_search(kind, weight)
    expected, is_masked = find(search, hidden), torch.zeros(8, out_features, dtype=torch.bool)
    is_masked[[2, 7]] = True
    columns, maxima = find(search, hidden, shuffled_mask(is_masked))
    assert maxima.isneginf().tolist() == is_masked[:, 0].tolist()
    assert columns[[2, 7]].tolist() == [0, 0]
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(columns[others], expected[0][others])
    assert torch.equal(maxima[others], expected[1][others])


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_whatever_its_neighbours(kind):
    """And whatever the search before was: more rows or fewer, contiguous or not."""
    weight, wide = torch.randn(700, 33), torch.randn(13, 40)
    search, hidden = make_search(kind, weight), wide[:, 4:37]
    alone = [find(search, row[None]) for row in hidden]
    for count in (2, 13, 1, 7):
        columns, maxima = search(hidden[:count])
        assert torch.equal(columns, torch.cat([result[0] for result in alone[:count]]))
        assert torch.equal(maxima, torch.cat([result[1] for result in alone[:count]]))


def test_bounds_need_int8():
    weight = torch.randn(5, 3)
    with pytest.raises(ValueError, match=r"^weight:"):
        LinearArgmax(pack("float32", weight, None), ErrorBounds(weight, None, weight[:, 0], weight[:, 0], 0.0, 0.0))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("threads", [1, 2, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_epilogue_of_a_program(kind, threads):
    """In the same run as the program, with other rows and masks each time, a search gives the same as alone."""
    torch.set_num_threads(threads)
    weight = torch.randn(700, 64)
    search, alone = make_search(kind, weight), make_search(kind, weight)
    program, x, hidden = Program(20), torch.randn(20, 64), torch.zeros(20, 64)
    program.layer_norm(x, torch.ones(64), torch.zeros(64), 1e-5, hidden)
    for count in (1, 5, 20, 3):
        masked = shuffled_mask(torch.rand(count, 700) < 0.3)
        hidden.fill_(NAN)
        program.run(count, epilogue=search.prepare(hidden[:count], masked))
        results = tuple(tensor.clone() for tensor in search.results(count))
        assert all(map(torch.equal, results, alone(hidden[:count], masked)))


def test_rows_that_are_not_contiguous_are_refused():
    search = make_search("float32", torch.randn(70, 8))
    with pytest.raises(ValueError, match=r"^hidden:"):
        search.prepare(torch.randn(3, 16)[:, :8])


@pytest.mark.parametrize("failing", range(1, 7))
def test_too_little_memory_changes_nothing(failing, monkeypatch):
    """A search that cannot allocate its buffers leaves the buffers of the search before as they were."""
    search, hidden = make_search("int8", torch.randn(700, 64)), torch.randn(30, 64)
    expected = find(search, hidden[:2])
    zeros, left = torch.zeros, [failing]

    def failing_zeros(*shape, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("can't allocate memory")
        return zeros(*shape, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", failing_zeros)
        with pytest.raises(RuntimeError, match="memory"):
            search(hidden)
    for _ in range(2):
        assert all(map(torch.equal, find(search, hidden[:2]), expected))
        assert len(find(search, hidden)[0]) == 30


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("kind", KINDS)
def test_more_threads_change_nothing(kind):
    """Nor does another thread that uses its own `LinearArgmax` at the same time."""
    weight, hidden = torch.randn(3000, 64), torch.randn(13, 64)
    weight[1500:] = weight[:1500] + 1e-4 * torch.randn(1500, 64)
    masked = shuffled_mask(torch.rand(13, 3000) < 0.1)
    torch.set_num_threads(1)
    expected = make_search(kind, weight)(hidden, masked)
    is_right: list[bool] = []

    def work() -> None:
        search = make_search(kind, weight)
        is_right.append(all(all(map(torch.equal, search(hidden, masked), expected)) for _ in range(300)))

    for threads in (2, 4):
        torch.set_num_threads(threads)
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert is_right == [True] * 4
