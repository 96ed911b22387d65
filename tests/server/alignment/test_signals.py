"""Signals, against the formulas of the contract, written as loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidelight.server.alignment import Signals, compute_signals
from sidelight.server.text import Token


def make_tokens(ids: list[int], special: list[bool]) -> list[Token]:
    return [Token(id_, "", 0, 0, is_special, "") for id_, is_special in zip(ids, special, strict=True)]


@st.composite
def targets(draw) -> tuple[np.ndarray, list[Token], list[Token]]:
    num_target, num_source = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.dirichlet(np.full(num_source, draw(st.sampled_from([0.05, 1.0]))), num_target).astype(np.float32)
    special = draw(st.lists(st.booleans(), min_size=num_source, max_size=num_source))
    ids = draw(st.lists(st.integers(0, 2), min_size=num_target, max_size=num_target))
    source = make_tokens([0] * num_source, special)
    return rows, source, make_tokens(ids, [False] * (num_target - 1) + [True])


@given(targets())
def test_signals_are_as_the_contract_defines_them(drawn):
    rows, source, target = drawn
    signals = compute_signals(rows, source, target)
    a = rows.astype(float).tolist()
    m, n = len(a), len(source)
    own = [j for j in range(n) if not source[j].special]
    assert signals.special_token_attention == pytest.approx(
        sum(a[i][j] for i in range(m) for j in range(n) if j not in own) / m, abs=1e-6
    )
    end = sum(row[-1] for row in a) / m if source[-1].special else None
    assert signals.end_token_attention == (None if end is None else pytest.approx(end, abs=1e-6))
    entropy = sum(-p * math.log(p) for row in a for p in row if p > 0) / m
    assert signals.attention_entropy == pytest.approx(entropy, abs=1e-6)
    relative = None if n == 1 else pytest.approx(entropy / math.log(n), abs=1e-6)
    assert signals.normalized_attention_entropy == relative
    assert signals.ignored_source == pytest.approx(sum(sum(row[j] for row in a) < 0.2 for j in range(n)) / n)
    distance = sum(abs(sum(row[j] for row in a) / m - 1 / n) for j in range(n)) / 2
    assert signals.wasserstein_to_uniform == pytest.approx(distance, abs=1e-6)
    totals = [sum(row[j] for j in own) for row in a]
    c = [sum(row[j] / total for row, total in zip(a, totals, strict=True) if total > 0) for j in own]
    if sum(c):
        assert signals.coverage == pytest.approx(sum(min(1, each) for each in c) / len(own), abs=1e-6)
        repeated = sum(max(0, each - 1) for each in c) / sum(c)
        assert signals.attention_repetition == pytest.approx(repeated, abs=1e-6)
    else:
        assert signals.coverage is None
        assert signals.attention_repetition is None
    ids = [token.id for token in target if not token.special]
    pairs = list(itertools.pairwise(ids))
    again = None if not pairs else sum(pair in pairs[:k] for k, pair in enumerate(pairs)) / len(pairs)
    assert signals.target_repetition == (None if again is None else pytest.approx(again))


def test_a_target_without_tokens_has_no_signals():
    source = make_tokens([1, 0], [False, True])
    assert compute_signals(np.zeros((0, 2), np.float32), source, []) == Signals()
