"""The greatest score found by estimates is the greatest there is, whatever weights and inputs look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.server.layers import screened_head as screening
from sidelight.server.layers.screened_head import ScreenedHead, greatest

NEVER = -float("inf")
seeds = st.integers(0, 2**31 - 1)


def make_screen(weight: torch.Tensor, bias: torch.Tensor | None = None) -> ScreenedHead:
    return ScreenedHead(weight, bias, lambda hidden: torch.nn.functional.linear(hidden, weight, bias))


def make(seed: int, vocabulary: int, width: int, rows: int, *, wild: bool) -> tuple[torch.Tensor, ...]:
    """Weights, a bias and inputs; wild ones have rows and columns a hundred times as long as others."""
    generator = torch.Generator().manual_seed(seed)
    weight, hidden = (torch.randn(count, width, generator=generator) for count in (vocabulary, rows))
    bias = torch.randn(vocabulary, generator=generator)
    if wild:
        weight *= 10 ** torch.empty(vocabulary, 1).uniform_(-1, 1, generator=generator)
        hidden *= 10 ** torch.empty(width).uniform_(-1, 1, generator=generator)
    return weight, bias, hidden


def check(
    screen: ScreenedHead, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, banned=()
) -> None:
    """What is found scores as high as the greatest, in float64, but for what float32 rounds."""
    estimates = screen.estimate(hidden)
    scores = estimates.scores
    exact = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    for token in banned:
        scores[:, token] = NEVER
        exact[:, token] = NEVER
    found = estimates.greatest(scores)
    rounding = 1e-6 * (
        hidden.double().norm(dim=1) * weight.double().norm(dim=1).max() + exact[exact > NEVER].abs().max()
    )
    assert (exact.gather(1, found[:, None])[:, 0] >= exact.amax(1) - rounding).all()
    assert not set(found.tolist()) & set(banned)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 70), st.integers(1, 9), st.booleans(), st.booleans())
def test_finds_the_greatest(seed, vocabulary, width, rows, wild, biased):
    weight, bias, hidden = make(seed, vocabulary, width, rows, wild=wild)
    banned = range(0, vocabulary - 1, 3)
    used = bias if biased else None
    screen = make_screen(weight, used)
    check(screen, hidden, weight, used)
    check(screen, hidden, weight, used, banned)


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_no_estimate_is_farther_off_than_its_margin(seed, wild):
    """The bound itself: near ties decided right by luck would not show that it is too small."""
    weight, bias, hidden = make(seed, 200, 48, 5, wild=wild)
    screen = make_screen(weight, bias)
    off, size = screen._margins(hidden)
    margin = np.outer(off, screen._norm) + np.outer(size, screen._error) + screen._slack
    exact = (hidden.double() @ weight.double().T + bias.double()).numpy()
    assert (np.abs(screen.estimate(hidden).scores.numpy() - exact) <= margin).all()
    assert margin.max() < 0.1 * np.outer(size, screen._norm).max()  # and not so great that it says nothing


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([1e-3, 1e-5, 1e-6]))
def test_tells_apart_what_int8_cannot(seed, apart):
    """Tokens whose weights are nearly the same: their estimates are in any order."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(4, 32, generator=generator)
    base = hidden.sum(0) + torch.randn(32, generator=generator)
    weight = base + apart * torch.randn(500, 32, generator=generator)
    check(make_screen(weight), hidden, weight, None)


def test_the_first_of_equal_ones():
    weight = torch.randn(400, 32).repeat(3, 1)
    hidden = torch.randn(6, 32)
    found = make_screen(weight).greatest(make_screen(weight).estimate(hidden).scores.numpy(), hidden)
    assert (found < 400).all()


def test_a_crowded_row_is_scored_in_full(monkeypatch):
    monkeypatch.setattr(screening, "_MANY", 8)
    weight, bias, hidden = make(3, 300, 40, 5, wild=False)
    weight[:100] = weight[0] + 1e-4 * torch.randn(100, 40)
    hidden[2] = weight[0]  # so that a hundred tokens may be its greatest
    asked = []

    def full(given: torch.Tensor) -> torch.Tensor:
        asked.append(len(given))
        return torch.nn.functional.linear(given, weight, bias)

    screen = ScreenedHead(weight, bias, full)
    asked.clear()
    check(screen, hidden, weight, bias)
    check(screen, hidden, weight, bias, banned=[int((weight[:100] @ hidden[2] + bias[:100]).argmax())])
    assert asked == [1, 1]


def test_neighbours_change_nothing():
    weight, bias, hidden = make(5, 4000, 64, 7, wild=True)
    screen = make_screen(weight, bias)

    def found(rows: torch.Tensor) -> list[int]:
        estimates = screen.estimate(rows)
        return estimates.greatest(estimates.scores).tolist()

    assert found(hidden) == [found(row[None])[0] for row in hidden]
    wide = hidden.clone()
    wide[3] = float("nan")
    wide[5] *= 1e6
    assert [token for place, token in enumerate(found(wide)) if place not in (3, 5)] == [
        token for place, token in enumerate(found(hidden)) if place not in (3, 5)
    ]


def test_rows_that_mean_nothing_are_passed_over():
    weight, _, hidden = make(1, 90, 16, 2, wild=False)
    estimates = make_screen(weight).estimate(hidden)
    with_others = torch.cat([torch.zeros(3, 90), estimates.scores])
    expected = (hidden @ weight.T).argmax(1).tolist()
    assert estimates.greatest(with_others).tolist() == [0, 0, 0, *expected]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_what_is_no_number_harms_nobody(value):
    """A row of zeros, of NaN or with infinity in it: its own token may mean nothing, but it is one."""
    weight, _, hidden = make(2, 90, 16, 3, wild=False)
    hidden[1] = value
    estimates = make_screen(weight).estimate(hidden)
    found = estimates.greatest(estimates.scores)
    expected = (hidden @ weight.T).argmax(1)
    assert found[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert 0 <= int(found[1]) < 90
    if value == 0.0:
        assert int(found[1]) == 0
    elif np.isnan(value):
        assert bool(estimates.scores[1, found[1]].isnan())  # so that whoever looks sees it


def test_a_row_of_which_nothing_is_left():
    weight, _, hidden = make(2, 90, 16, 2, wild=False)
    estimates = make_screen(weight).estimate(hidden)
    estimates.scores[0] = NEVER
    assert estimates.greatest(estimates.scores).tolist() == [0, int((hidden[1] @ weight.T).argmax())]


def test_is_measured_for_each_number_of_rows():
    screen = make_screen(torch.randn(50, 8))
    screen._worth = [False, True, False]
    assert [screen.is_worth(rows) for rows in (1, 2, 100)] == [True, False, False]


def test_the_greatest_by_looking():
    scores = torch.tensor([[1.0, 3.0, 3.0], [float("nan"), 1.0, 2.0], [NEVER, NEVER, NEVER]])
    for dtype in (torch.float32, torch.bfloat16):
        assert greatest(scores.to(dtype)).tolist() == [1, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_none_have_no_bounds(value):
    """A row that is broken, and banned, must not hide what is greatest among the others."""
    weight = torch.randn(50, 8)
    weight[7, 3] = value
    with pytest.raises(RuntimeError, match="not finite"):
        make_screen(weight)
