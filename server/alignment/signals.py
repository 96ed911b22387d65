"""Signals: numbers that judge a target as a whole, computed from its attention to the source.

The rows are those of Guerreiro et al. 2023 (arXiv:2212.09631): cross-attention of the last layer of the decoder, the
mean of its heads, with special tokens. Each signal is defined in the contract's message Signals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..text import Token

# A source token with less attention is ignored (Guerreiro et al. 2023, after Berard et al. 2019).
_IGNORED_MASS = 0.2

# The length of the sequences of target tokens that may come again. In sentences longer ones miss short repetitions.
_NGRAM_SIZE = 2


@dataclass(frozen=True)
class Signals:
    """Numbers that judge a target, all from 0 to 1 but `attention_entropy`, in nats. None: there is no such number."""

    coverage: float | None = None
    end_token_attention: float | None = None
    attention_entropy: float | None = None
    special_token_attention: float | None = None
    normalized_attention_entropy: float | None = None
    attention_repetition: float | None = None
    target_repetition: float | None = None
    ignored_source: float | None = None
    wasserstein_to_uniform: float | None = None


def compute_signals(rows: NDArray[np.float32], source: Sequence[Token], target: Sequence[Token]) -> Signals:
    """Computes all signals of one target.

    Args:
        rows: float32 `[target tokens, source tokens]`. Each row sums to 1.
        source: The tokens of the source, with special tokens.
        target: The tokens of the target, with special tokens.
    """
    if not rows.size:
        return Signals()
    numbers = np.asarray(rows, np.float64)
    num_target, num_source = numbers.shape
    mass = numbers.sum(0)  # what each source token gets
    entropy = float(-(numbers * np.log(np.where(numbers > 0, numbers, 1))).sum(1).mean())
    is_special = np.array([token.special for token in source], np.bool_)
    coverage, repetition = _cover(numbers[:, ~is_special])
    return Signals(
        coverage,
        float(mass[-1]) / num_target if is_special[-1] else None,
        entropy,
        float(mass[is_special].sum()) / num_target,
        entropy / float(np.log(num_source)) if num_source > 1 else None,
        repetition,
        _count_repeated([token.id for token in target if not token.special]),
        float((mass < _IGNORED_MASS).mean()),
        float(np.abs(mass / num_target - 1 / num_source).sum()) / 2,
    )


def mean_signals(signals: Sequence[tuple[Signals, int]]) -> Signals:
    """Returns the means of the signals of several targets. Each is weighted by the number of its tokens."""
    means: dict[str, float] = {}
    for name in (field.name for field in dataclasses.fields(Signals)):
        known = [(getattr(one, name), weight) for one, weight in signals if getattr(one, name) is not None]
        if total := sum(weight for _, weight in known):
            means[name] = sum(value * weight for value, weight in known) / total
    return Signals(**means)


def _cover(numbers: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Coverage, and the repetition of attention, from rows without special tokens."""
    totals = numbers.sum(1, keepdims=True)
    shares = np.divide(numbers, totals, out=np.zeros_like(numbers), where=totals > 0)
    mass = shares.sum(0)
    if not mass.any():
        return None, None
    return float(np.minimum(mass, 1).mean()), float(np.maximum(mass - 1, 0).sum() / mass.sum())


def _count_repeated(ids: Sequence[int]) -> float | None:
    """The share of the n-grams that have come before: seq-rep-n (Welleck et al. 2020, arXiv:1908.04319)."""
    ngrams = [tuple(ids[begin : begin + _NGRAM_SIZE]) for begin in range(len(ids) - _NGRAM_SIZE + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None
