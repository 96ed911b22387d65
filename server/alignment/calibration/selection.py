"""Chooses the preset whose links agree best with reference links."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..decisions import LINK_METHODS, TINY, LinkMethod, rate_pairs
from ..features import LinkFeature, combine_features
from ..lexicon import Lexicon
from ..linker import WordedText
from ..preset import (
    ROWS,
    SPECIAL_TOKENS,
    AlignmentHead,
    AlignmentPreset,
    CalibrationFigures,
    LinkDecision,
    Row,
    SpecialTokens,
)
from ..spelling import compare_spelling
from ..word_scores import Matrix, WordScores, score_words
from .cross_validation import cross_validate, gains_clearly
from .measures import CountedPair, count_each, count_links, sum_counts

# The heads that the search adds, of those that are best alone; and how much a head must lower the error rate.
_MAX_CANDIDATES = 12
_MAX_ADDED = 6
_MIN_GAIN = 0.001

# The weights and thresholds that are tried.
WEIGHTS: tuple[Mapping[LinkFeature, float], ...] = (
    {"attention": 1.0},
    {"attention": 1.0, "spelling": 5.0},
    {"attention": 1.0, "lexicon": 1.0, "spelling": 5.0},
    {"attention": 0.5, "lexicon": 1.0, "spelling": 5.0},
    {"attention": 0.7, "lexicon": 0.7, "spelling": 5.0},
    {"attention": 1.0, "lexicon": 0.5, "spelling": 5.0},
)
# The weights of the feature "encoder_states" that are tried on top of each of these.
STATES_WEIGHTS = (0.25, 0.5, 1.0)
_THRESHOLDS: Mapping[LinkMethod, tuple[float, ...]] = {
    "argmax": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    "threshold": (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7),
    "optimal_transport": (0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "itermax": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
}
# How many times `on_step` is called.
NUM_STEPS = len(ROWS) * len(SPECIAL_TOKENS) + 1


@dataclass(frozen=True)
class MeasuredPair:
    """A pair of texts with its attention and its reference links.

    Attributes:
        source: The source.
        target: The target.
        rows: The rows of all heads, float `[target tokens, source tokens, layers, heads]`, for each row.
        reference: The links of the reference, the sure ones if it has others too: bool `[source words, target words]`.
        encoder_states: How alike the encoder's states of the words are, `[source words, target words]`; None: this was
            not measured.
        possible: The links of the reference that are possible and not sure, bool `[source words, target words]`; None:
            all links of the reference are sure.
    """

    source: WordedText
    target: WordedText
    rows: Mapping[Row, NDArray[np.floating]]
    reference: NDArray[np.bool_]
    encoder_states: NDArray[np.floating] | None = None
    possible: NDArray[np.bool_] | None = None


class _HeadScores(NamedTuple):
    """The scores of all heads of a pair of texts.

    `scores` is float32 `[heads, source words, target words]`, `null` is float32 `[heads, target words]`.
    """

    scores: Matrix
    null: Matrix

    def mean(self, heads: Sequence[int]) -> WordScores:
        """Returns the mean over heads, each as often as it is named."""
        return WordScores(self.scores[heads].mean(0), self.null[heads].mean(0))


class _Heads(NamedTuple):
    """Heads that were chosen, as often as their weights say, and their mean scores of each pair of texts."""

    error_rate: float
    heads: list[int]
    row: Row
    special_tokens: SpecialTokens
    scores: list[WordScores]


class _Features(NamedTuple):
    """The features of a pair of texts."""

    attention: WordScores
    lexicon: Matrix | None
    spelling: Matrix
    encoder_states: Matrix | None

    def combine(self, weights: Mapping[LinkFeature, float]) -> WordScores:
        """Returns the scores that the features come to."""
        lexicon = self.lexicon if "lexicon" in weights else None
        spelling = self.spelling if "spelling" in weights else None
        states = self.encoder_states if "encoder_states" in weights else None
        return combine_features(self.attention, lexicon, spelling, weights, states)


class _Decision(NamedTuple):
    """How links are decided, and what came of it: the error rate, and the counts of each pair, `[pairs, 4]`."""

    error_rate: float
    counts: NDArray[np.int64]
    weights: Mapping[LinkFeature, float]
    method: LinkMethod
    threshold: float


def choose_preset(
    pairs: Sequence[MeasuredPair],
    lexicon: Lexicon | None,
    reference: str,
    on_step: Callable[[], None] = lambda: None,
    weights: Sequence[Mapping[LinkFeature, float]] = WEIGHTS,
    states_weights: Sequence[float] = STATES_WEIGHTS,
) -> AlignmentPreset:
    """Returns the preset with the lowest error rate over pairs of texts, with what was measured.

    First the heads are chosen, for each row and treatment of special tokens: the head that is best by argmax, then the
    heads that lower the error rate most, one by one. A head that is chosen twice has twice the weight. Then weights of
    features, the method and its threshold are chosen together. The encoder's states have a part only where the error
    rate is clearly lower with them, in cross-validation: they cost passes of the encoder.

    Args:
        pairs: The pairs of texts, at least one.
        lexicon: The table for the feature "lexicon", learnt from other pairs.
        reference: The name of the reference.
        on_step: Called `NUM_STEPS` times.
        weights: The weights of features that are tried.
        states_weights: The weights of the feature "encoder_states" that are tried on top of these.
    """
    best, grids = _choose_heads(pairs, on_step)
    usable = [choice for choice in weights if lexicon is not None or "lexicon" not in choice]
    features = _find_features(best.scores, pairs, lexicon)
    without = decisions = _try_decisions(features, pairs, usable)
    error_rates: tuple[float, float] | None = None
    if states_weights and all(pair.encoder_states is not None for pair in pairs):
        decisions, error_rates = _compare(without, _try_decisions(features, pairs, _extend(usable, states_weights)))
    decision, thresholds = _choose_decision(decisions)
    live: LinkDecision | None = None
    if decisions is not without:
        own, own_thresholds = _choose_decision(without)
        live = LinkDecision(own.weights, own.method, own_thresholds)
    counts = sum_counts(decision.counts)
    on_step()
    rates = counts.error_rate, counts.precision, counts.recall
    return AlignmentPreset(
        _weigh(best.heads, len(grids[best.row][0])),
        best.row,
        best.special_tokens,
        decision.method,
        thresholds,
        decision.weights,
        lexicon if "lexicon" in {*decision.weights, *(live.weights if live else ())} else None,
        CalibrationFigures(len(pairs), reference, *rates, grids, error_rates),
        live,
    )


def _weigh(heads: Sequence[int], num_heads: int) -> tuple[AlignmentHead, ...]:
    """Returns each head once, with the number of times that it was chosen as its weight."""
    return tuple(AlignmentHead(*divmod(head, num_heads), float(heads.count(head))) for head in dict.fromkeys(heads))


def _extend(
    weights: Iterable[Mapping[LinkFeature, float]], states_weights: Sequence[float]
) -> Iterator[Mapping[LinkFeature, float]]:
    """Yields all weights with each weight of the encoder's states."""
    for choice in weights:
        for weight in states_weights:
            yield {**choice, "encoder_states": weight}


# ---- heads ----------------------------------------------------------------------------------------------------------


def _choose_heads(
    pairs: Sequence[MeasuredPair], on_step: Callable[[], None]
) -> tuple[_Heads, dict[Row, tuple[tuple[float, ...], ...]]]:
    """Returns the best heads, and the error rates of single heads for each row: of layers, of heads."""
    num_heads = next(iter(pairs[0].rows.values())).shape[3]
    grids: dict[Row, tuple[tuple[float, ...], ...]] = {}
    best: _Heads | None = None
    for row in ROWS:
        for special_tokens in SPECIAL_TOKENS:
            head_scores = [_score_heads(pair, row, special_tokens) for pair in pairs]
            rates = [_rate_heads(head_scores, [head], pairs) for head in range(len(head_scores[0].scores))]
            heads, rate = _add_heads(head_scores, rates, pairs)
            if best is None or rate < best.error_rate:
                best = _Heads(rate, heads, row, special_tokens, [scores.mean(heads) for scores in head_scores])
            grids[row] = tuple(tuple(rates[first : first + num_heads]) for first in range(0, len(rates), num_heads))
            on_step()
    assert best is not None
    return best, grids


def _score_heads(pair: MeasuredPair, row: Row, special_tokens: SpecialTokens) -> _HeadScores:
    rows = pair.rows[row]
    by_head = np.moveaxis(rows.reshape(*rows.shape[:2], -1), 2, 0)
    renormalizes = special_tokens == "renormalize"
    scores = [
        score_words(head @ pair.source.columns, pair.target.shares, renormalizes=renormalizes) for head in by_head
    ]
    return _HeadScores(np.stack([score.scores for score in scores]), np.stack([score.null for score in scores]))


def _rate_heads(head_scores: Sequence[_HeadScores], heads: Sequence[int], pairs: Sequence[MeasuredPair]) -> float:
    """Returns the error rate of the mean of heads, by argmax."""
    links = (rate_pairs(scores.mean(heads), "argmax") > 0 for scores in head_scores)
    return count_links(_with_reference(links, pairs)).error_rate


def _with_reference(links: Iterable[NDArray[np.bool_]], pairs: Sequence[MeasuredPair]) -> Iterator[CountedPair]:
    """Yields the links of each pair of texts with those of the reference."""
    for found, pair in zip(links, pairs, strict=True):
        yield found, pair.reference, pair.possible


def _add_heads(
    head_scores: Sequence[_HeadScores], rates: Sequence[float], pairs: Sequence[MeasuredPair]
) -> tuple[list[int], float]:
    """Returns the heads that were added one by one, and their error rate."""
    candidates = np.argsort(rates, kind="stable")[:_MAX_CANDIDATES].tolist()
    heads, rate = candidates[:1], rates[candidates[0]]
    while len(heads) < _MAX_ADDED:
        next_rate, head = min((_rate_heads(head_scores, [*heads, head], pairs), head) for head in candidates)
        if next_rate > rate - _MIN_GAIN:
            break
        heads, rate = [*heads, head], next_rate
    return heads, rate


# ---- features, method, threshold ------------------------------------------------------------------------------------


def _find_features(
    attention: Sequence[WordScores], pairs: Sequence[MeasuredPair], lexicon: Lexicon | None
) -> list[_Features]:
    return [
        _Features(
            scores,
            None if lexicon is None else lexicon.score(pair.source.folded, pair.target.folded),
            compare_spelling(pair.source.folded, pair.target.folded),
            None if pair.encoder_states is None else pair.encoder_states.astype(np.float32),
        )
        for scores, pair in zip(attention, pairs, strict=True)
    ]


def _try_decisions(
    features: Sequence[_Features], pairs: Sequence[MeasuredPair], weights: Iterable[Mapping[LinkFeature, float]]
) -> list[_Decision]:
    """Returns what comes of all weights, methods and thresholds."""
    decisions: list[_Decision] = []
    for choice in weights:
        scores = [each.combine(choice) for each in features]
        for method in LINK_METHODS:
            rated = [rate_pairs(each, method) for each in scores]
            decisions += [_decide(rated, pairs, choice, method, threshold) for threshold in _THRESHOLDS[method]]
    return decisions


def _decide(
    rated: Sequence[Matrix],
    pairs: Sequence[MeasuredPair],
    weights: Mapping[LinkFeature, float],
    method: LinkMethod,
    threshold: float,
) -> _Decision:
    links = (matrix >= max(threshold, TINY) for matrix in rated)
    counts = count_each(_with_reference(links, pairs))
    return _Decision(sum_counts(counts).error_rate, counts, weights, method, threshold)


def _compare(without: list[_Decision], with_states: list[_Decision]) -> tuple[list[_Decision], tuple[float, float]]:
    """Returns the decisions to choose from, and the cross-validated error rates without and with encoder states."""
    before, after = (cross_validate(np.stack([each.counts for each in tried])) for tried in (without, with_states))
    chosen = with_states if gains_clearly(before, after) else without
    return chosen, (sum_counts(before).error_rate, sum_counts(after).error_rate)


def _choose_decision(decisions: Sequence[_Decision]) -> tuple[_Decision, dict[LinkMethod, float]]:
    """Returns the best decision, and the best threshold of each method with the same weights."""
    best = min(decisions, key=_error_rate)
    with_weights = [decision for decision in decisions if decision.weights is best.weights]
    thresholds: dict[LinkMethod, float] = {
        method: min((each for each in with_weights if each.method == method), key=_error_rate).threshold
        for method in LINK_METHODS
    }
    return best, thresholds


def _error_rate(decision: _Decision) -> float:
    return decision.error_rate
