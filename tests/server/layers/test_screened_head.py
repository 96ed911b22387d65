"""A screened head finds the largest logit there is, whatever weights and hidden states look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.kernels.cpu import MaskedColumns, mask_columns
from sidelight.kernels.cpu.program import PackedMatmul, is_supported
from sidelight.server.layers import screened_head
from sidelight.server.layers.packed_linear import quantize
from sidelight.server.layers.screened_head import ScreenedHead

pytestmark = pytest.mark.skipif(not is_supported(int8=True), reason="no programs with int8 weights here")

NEVER = -float("inf")
seeds = st.integers(0, 2**31 - 1)


def make_head(weight: torch.Tensor, bias: torch.Tensor | None = None) -> ScreenedHead:
    return ScreenedHead(weight, bias, lambda hidden: torch.nn.functional.linear(hidden, weight, bias).argmax(-1))


def make(seed: int, vocabulary: int, width: int, rows: int, *, wild: bool) -> tuple[torch.Tensor, ...]:
    """Weights, a bias and hidden states; wild ones have rows and columns a hundred times as long as others."""
    generator = torch.Generator().manual_seed(seed)
    weight, hidden = (torch.randn(count, width, generator=generator) for count in (vocabulary, rows))
    bias = torch.randn(vocabulary, generator=generator)
    if wild:
        weight *= 10 ** torch.empty(vocabulary, 1).uniform_(-1, 1, generator=generator)
        hidden *= 10 ** torch.empty(width).uniform_(-1, 1, generator=generator)
    return weight, bias, hidden


def mask(banned: range, rows: int, vocabulary: int) -> MaskedColumns:
    """The same banned tokens for all rows."""
    tokens = torch.tensor(banned, dtype=torch.int64)
    return mask_columns(torch.arange(rows).repeat_interleave(len(tokens)), tokens.repeat(rows), vocabulary)


def find(head: ScreenedHead, hidden: torch.Tensor, masked: MaskedColumns | None = None) -> torch.Tensor:
    return head.search(hidden, masked)[0].clone()


def check(
    head: ScreenedHead,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    banned: range = range(0),
) -> None:
    """The logit of the token that is found is the largest in float64, but for what float32 rounds."""
    exact = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    exact[:, list(banned)] = NEVER
    tokens = find(head, hidden, mask(banned, *exact.shape) if banned else None)
    rounding = 1e-6 * (
        hidden.double().norm(dim=1) * weight.double().norm(dim=1).max() + exact[exact > NEVER].abs().max()
    )
    assert (exact.gather(1, tokens[:, None])[:, 0] >= exact.amax(1) - rounding).all()
    assert not set(tokens.tolist()) & set(banned)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 300), st.integers(1, 70), st.integers(1, 9), st.booleans(), st.booleans())
def test_finds_the_largest_logit(seed, vocabulary, width, rows, wild, biased):
    weight, bias, hidden = make(seed, vocabulary, width, rows, wild=wild)
    used_bias = bias if biased else None
    head = make_head(weight, used_bias)
    check(head, hidden, weight, used_bias)
    check(head, hidden, weight, used_bias, range(0, vocabulary - 1, 3))


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
def test_no_estimate_is_farther_off_than_its_bound(seed, wild):
    """The bound itself: near ties that luck decides right would not show that a bound is too small."""
    weight, bias, hidden = make(seed, 200, 48, 5, wild=wild)
    search = make_head(weight, bias).search
    packed, bounds = search._weight, search._bounds
    assert bounds is not None
    length = hidden.norm(dim=1)
    levels, scale = quantize(hidden)
    off = (levels * scale[:, None] - hidden).norm(dim=1) + bounds.rounding * length
    margin = (torch.outer(off, bounds.norms) + torch.outer(length, bounds.errors) + bounds.slack).numpy()
    exact = (hidden.double() @ weight.double().T + bias.double()).numpy()
    estimates = PackedMatmul(packed)(hidden).numpy()
    assert (np.abs(estimates - exact) <= margin).all()
    assert margin.max() < 0.1 * torch.outer(length, bounds.norms).max()  # nor is the bound too large to say anything


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([1e-3, 1e-5, 1e-6]))
def test_distinguishes_tokens_that_int8_cannot(seed, difference):
    """Tokens whose weights are nearly the same: their estimates are in any order, and all 500 are candidates."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(4, 32, generator=generator)
    base = hidden.sum(0) + torch.randn(32, generator=generator)
    weight = base + difference * torch.randn(500, 32, generator=generator)
    check(make_head(weight), hidden, weight, None)


def test_the_first_of_equal_logits():
    weight = torch.randn(400, 32).repeat(3, 1)
    assert (find(make_head(weight), torch.randn(6, 32)) < 400).all()


def test_neighbours_change_nothing():
    weight, bias, hidden = make(5, 4000, 64, 7, wild=True)
    head = make_head(weight, bias)
    expected = find(head, hidden).tolist()
    assert expected == [int(find(head, row[None])) for row in hidden]
    changed = hidden.clone()
    changed[3] = float("nan")
    changed[5] *= 1e6
    tokens = find(head, changed).tolist()
    assert [tokens[row] for row in (0, 1, 2, 4, 6)] == [expected[row] for row in (0, 1, 2, 4, 6)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_row_of_nan_harms_no_other_row(value):
    """A row of zeros, NaN or infinities: its own token may mean nothing, but it is a token of the vocabulary."""
    weight, _, hidden = make(2, 90, 16, 3, wild=False)
    hidden[1] = value
    tokens, largest = make_head(weight).search(hidden)
    expected = (hidden @ weight.T).argmax(1)
    assert tokens[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert 0 <= int(tokens[1]) < 90
    assert bool(largest[1] < float("inf")) == (value == 0.0)  # so that the sampler sees NaN
    if value == 0.0:
        assert int(tokens[1]) == 0


def test_is_measured_for_each_number_of_rows():
    head = make_head(torch.randn(50, 8))
    head._is_faster = [False, True, False]
    assert [head.is_faster(rows) for rows in (1, 2, 100)] == [True, False, False]
    assert head.is_ever_faster


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_have_no_bounds(value):
    """A broken row that is banned must not hide the largest logit of the others."""
    weight = torch.randn(50, 8)
    weight[7, 3] = value
    with pytest.raises(RuntimeError, match="not finite"):
        make_head(weight)


def test_a_machine_without_int8_programs_has_no_screened_head(monkeypatch):
    monkeypatch.setattr(screened_head, "is_supported", lambda **_: False)
    with pytest.raises(RuntimeError, match="do not run on this machine"):
        make_head(torch.randn(50, 8))
