"""The greatest scores that programs find are those of all scores, written out."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sidelight.kernels.cpu.argmax import ErrorBounds, LinearArgmax, MaskedColumns, out_of_the_question
from sidelight.kernels.cpu.program import PackedMatmul, PackedWeight, Program, is_supported, pack_weight
from torch import Tensor

pytestmark = [
    pytest.mark.skipif(not is_supported(of_bytes=True), reason="no programs of bytes on this machine"),
    pytest.mark.usefixtures("seeded"),
]

NAN, INFINITY, NEVER = float("nan"), float("inf"), -float("inf")
# How many scores there are: around panels, and around groups of eight.
SIZES = [1, 3, 63, 64, 65, 130, 511, 512, 513, 3000]
# What scores are read from: the weights in float32, or in int8; or those, and with bounds the weights as well.
WAYS = ("float32", "int8", "bounds")


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """In int8, and the scale of each channel."""
    channels = weight.abs().amax(1) / 127
    channels[channels == 0] = 1
    return (weight / channels[:, None]).round().to(torch.int8), channels


def make_panels(way: str, weight: Tensor, bias: Tensor | None) -> PackedWeight:
    return pack_weight(weight, None, bias) if way == "float32" else pack_weight(*quantized(weight), bias)


def make_search(way: str, weight: Tensor, bias: Tensor | None = None) -> LinearArgmax:
    if way != "bounds":
        return LinearArgmax(make_panels(way, weight, bias))
    numbers, channels = quantized(weight)
    copy = numbers * channels[:, None]
    errors = (weight - copy).norm(dim=1) + 1e-6 * weight.norm(dim=1)
    slack = 0.0 if bias is None else 1e-6 * float(bias.abs().max())
    bounds = ErrorBounds(weight, bias, copy.norm(dim=1), errors, slack, 1e-6)
    return LinearArgmax(make_panels(way, weight, bias), bounds)


def find(search: LinearArgmax, hidden: Tensor, out: MaskedColumns | None = None) -> tuple[Tensor, Tensor]:
    """What a search finds, which otherwise is there until its next one."""
    tokens, most = search(hidden, out)
    return tokens.clone(), most.clone()


def first_greatest(scores: Tensor) -> Tensor:
    """As NumPy has it: of equal numbers the first, and NaN above all."""
    return torch.from_numpy(scores.numpy().argmax(1))


def in_full(way: str, hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All scores, or all estimates of them."""
    return PackedMatmul(make_panels(way, weight, bias))(hidden)


def assert_greatest(found: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> None:
    """In float64, but for what float32 rounds."""
    exact = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    budget = hidden.double().norm(dim=1) * weight.double().norm(dim=1).max() + exact.abs().amax(1)
    if out is not None:
        exact = exact.masked_fill(out, NEVER)
    assert (exact.gather(1, found[:, None])[:, 0] >= exact.amax(1) - 1e-6 * budget).all()


def picked(is_out: Tensor) -> MaskedColumns:
    """What stands in a table of what is out of the question, in any order."""
    rows, places = is_out.nonzero().T
    order = torch.randperm(len(rows))
    return out_of_the_question(rows[order], places[order], is_out.shape[1])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (5, 3), (6, 33), (7, 64), (13, 67), (20, 64), (33, 128)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_finds_the_greatest(size, way, rows, inner, biased):
    weight, hidden, bias = torch.randn(size, inner), torch.randn(rows, inner), torch.randn(size) if biased else None
    search, scores = make_search(way, weight, bias), in_full(way, hidden, weight, bias)
    some = (torch.rand(rows, size) < 0.3).scatter(1, scores.argmax(1, keepdim=True), True)
    for is_out in (None, some, torch.zeros_like(some)):
        left = scores if is_out is None else scores.masked_fill(is_out, NEVER)
        tokens, most = search(hidden, None if is_out is None else picked(is_out))
        assert torch.equal(most, left.amax(1))
        if way == "bounds":
            assert_greatest(tokens, hidden, weight, bias, is_out)
        else:
            assert torch.equal(tokens, first_greatest(left))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("apart", [1, 63, 64, 65, 512, 700])
def test_the_first_of_equal_ones(apart, way):
    """Whole numbers, whose sums are exact, and many of them equal."""
    weight = torch.randint(-2, 3, (1500, 5)).float()
    weight[0, 0] = 127  # so that copies are exact as well, or nearly
    weight[1500 - apart :] = weight[: apart or None][:apart]
    hidden = torch.randint(-3, 4, (9, 5)).float()
    hidden[8] = 0
    tokens, _ = make_search(way, weight)(hidden)
    expected = hidden @ weight.T if way != "int8" else in_full(way, hidden, weight)
    assert torch.equal(tokens, first_greatest(expected))
    for bias in (torch.zeros(1500), torch.randint(0, 2, (1500,)).float()):
        tokens, _ = make_search(way, torch.zeros(1500, 5), bias)(hidden)
        assert tokens.tolist() == [int(bias.argmax())] * 9
    for place in (0, 63, 64, 700, 1499):  # twice, and not at the beginning
        weight = torch.zeros(1500, 5)
        weight[[place, min(place + apart, 1499)]] = 1
        assert make_search(way, weight)(torch.ones(2, 5))[0].tolist() == [place] * 2


@pytest.mark.parametrize("apart", [1e-3, 1e-5])
def test_tells_apart_what_int8_cannot(apart):
    hidden = torch.randn(4, 32)
    weight = hidden.sum(0) + torch.randn(32) + apart * torch.randn(3000, 32)
    tokens, _ = make_search("bounds", weight)(hidden)
    assert_greatest(tokens, hidden, weight, None, None)
    with pytest.raises(AssertionError):
        assert_greatest(make_search("int8", weight)(hidden)[0], hidden, weight, None, None)


@settings(deadline=None, max_examples=80, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_anything(data):
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31 - 1)))
    size, inner = data.draw(st.integers(1, 1200)), data.draw(st.integers(1, 70))
    rows, way = data.draw(st.integers(1, 14)), data.draw(st.sampled_from(WAYS))
    weight, hidden = torch.randn(size, inner, generator=random), torch.randn(rows, inner, generator=random)
    bias = data.draw(st.sampled_from([None, torch.randn(size, generator=random)]))
    if data.draw(st.booleans()):  # some rows and columns a hundred times as long as others
        weight *= 10 ** (torch.rand(size, 1, generator=random) * 2 - 1)
        hidden *= 10 ** (torch.rand(inner, generator=random) * 2 - 1)
    share = data.draw(st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
    is_out = torch.rand(rows, size, generator=random) < share
    tokens, most = make_search(way, weight, bias)(hidden, picked(is_out))
    left = in_full(way, hidden, weight, bias).masked_fill(is_out, NEVER)
    assert torch.equal(most, left.amax(1))
    assert ((tokens >= 0) & (tokens < size)).all()
    if way == "bounds":
        assert_greatest(tokens, hidden, weight, bias, is_out)
        assert not is_out.gather(1, tokens[:, None])[~is_out.all(1)].any()
    else:
        assert torch.equal(tokens, first_greatest(left))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [NAN, INFINITY, 0.0])
def test_what_is_no_number_stays_in_its_row(value, way):
    weight, bias, hidden = torch.randn(700, 33), torch.randn(700), torch.randn(8, 33)
    hidden[3] = 0
    search = make_search(way, weight, bias)
    expected = find(search, hidden)
    hidden[3, 20] = value
    is_out = torch.zeros(8, 700, dtype=torch.bool)
    is_out[3, :2] = is_out[3, int(bias.argmax())] = True
    left = in_full(way, hidden, weight, bias).masked_fill(is_out, NEVER)
    tokens, most = find(search, hidden, picked(is_out))
    others = [0, 1, 2, 4, 5, 6, 7]
    for result, before in zip((tokens, most), expected, strict=True):
        assert torch.equal(result[others], before[others])
    assert tokens[3] == first_greatest(left)[3]  # so that NaN, where there is any, is seen
    assert most[3].isnan() or most[3] == left[3].amax()
    assert bool(most[3].isnan()) == bool(left[3].isnan().any())


@pytest.mark.parametrize("place", [0, 63, 64, 600, 699])
def test_a_score_that_is_no_number_is_found(place):
    weight, hidden = torch.randn(700, 33), torch.randn(8, 33)
    weight[[place, 699], 5] = NAN
    tokens, most = make_search("float32", weight)(hidden)
    assert tokens.tolist() == [place] * 8
    assert most.isnan().all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 64, 700])
def test_all_of_a_row_is_out_of_the_question(size, way):
    weight, hidden = torch.randn(size, 33), torch.randn(8, 33)
    search = make_search(way, weight)
    expected, is_out = find(search, hidden), torch.zeros(8, size, dtype=torch.bool)
    is_out[[2, 7]] = True
    tokens, most = find(search, hidden, picked(is_out))
    assert most.isneginf().tolist() == is_out[:, 0].tolist()
    assert tokens[[2, 7]].tolist() == [0, 0]
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(tokens[others], expected[0][others])
    assert torch.equal(most[others], expected[1][others])


@pytest.mark.parametrize("way", WAYS)
def test_a_row_is_the_same_whatever_its_neighbours(way):
    """And whatever was searched before, in more rows or fewer, contiguous or not."""
    weight, wide = torch.randn(700, 33), torch.randn(13, 40)
    search, hidden = make_search(way, weight), wide[:, 4:37]
    alone = [find(search, row[None]) for row in hidden]
    for count in (2, 13, 1, 7):
        tokens, most = search(hidden[:count])
        assert torch.equal(tokens, torch.cat([each[0] for each in alone[:count]]))
        assert torch.equal(most, torch.cat([each[1] for each in alone[:count]]))


def test_bounds_are_of_bytes():
    weight = torch.randn(5, 3)
    with pytest.raises(ValueError, match="panels"):
        LinearArgmax(
            make_panels("float32", weight, None), ErrorBounds(weight, None, weight[:, 0], weight[:, 0], 0.0, 0.0)
        )


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("threads", [1, 2, 12])
@pytest.mark.parametrize("way", WAYS)
def test_behind_a_program(way, threads):
    """In the same run, for more rows each time, with other exclusions: as by itself."""
    torch.set_num_threads(threads)
    weight = torch.randn(700, 64)
    search, alone = make_search(way, weight), make_search(way, weight)
    program, x, hidden = Program(20), torch.randn(20, 64), torch.zeros(20, 64)
    program.normalize(x, torch.ones(64), torch.zeros(64), 1e-5, hidden)
    for count in (1, 5, 20, 3):
        excluded = picked(torch.rand(count, 700) < 0.3)
        hidden.fill_(NAN)
        program.run(count, then=search.prepare(hidden[:count], excluded))
        found = tuple(each.clone() for each in search.found(count))
        assert all(map(torch.equal, found, alone(hidden[:count], excluded)))


def test_rows_that_do_not_stand_one_after_another_are_refused():
    search = make_search("float32", torch.randn(70, 8))
    with pytest.raises(ValueError, match="hidden"):
        search.prepare(torch.randn(3, 16)[:, :8])


@pytest.mark.parametrize("failing", range(1, 7))
def test_too_little_memory_changes_nothing(failing, monkeypatch):
    """A search for which there is no memory leaves one that there is as it was."""
    search, hidden = make_search("int8", torch.randn(700, 64)), torch.randn(30, 64)
    expected = find(search, hidden[:2])
    zeros, left = torch.zeros, [failing]

    def some_zeros(*size, **options):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("can't allocate memory")
        return zeros(*size, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", some_zeros)
        with pytest.raises(RuntimeError, match="memory"):
            search(hidden)
    for _ in range(2):
        assert all(map(torch.equal, find(search, hidden[:2]), expected))
        assert len(find(search, hidden)[0]) == 30


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("way", WAYS)
def test_more_threads_change_nothing(way):
    """Nor does another thread that searches at the same time, with a search of its own."""
    weight, hidden = torch.randn(3000, 64), torch.randn(13, 64)
    weight[1500:] = weight[:1500] + 1e-4 * torch.randn(1500, 64)
    out = picked(torch.rand(13, 3000) < 0.1)
    torch.set_num_threads(1)
    expected = make_search(way, weight)(hidden, out)
    right: list[bool] = []

    def work() -> None:
        search = make_search(way, weight)
        right.append(all(all(map(torch.equal, search(hidden, out), expected)) for _ in range(300)))

    for threads in (2, 4):
        torch.set_num_threads(threads)
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert right == [True] * 4
