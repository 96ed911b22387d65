"""What the score of a pair of words is made of: attention, lexicon, spelling and the encoder's states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from .word_scores import SMALLEST_SUM, Matrix, WordScores

LinkFeature = Literal["attention", "lexicon", "spelling", "encoder_states"]
LINK_FEATURES: tuple[LinkFeature, ...] = get_args(LinkFeature)

DEFAULT_WEIGHTS: Mapping[LinkFeature, float] = {
    "attention": 1.0,
    "lexicon": 1.0,
    "spelling": 5.0,
    "encoder_states": 0.5,
}

# What is added to a share of attention, to a number of the lexicon and to the likeness of states, so that none of them
# excludes a pair alone.
ATTENTION_FLOOR = 0.01
LEXICON_FLOOR = 0.003
_STATES_FLOOR = 0.01


def combine_features(
    attention: WordScores,
    lexicon: Matrix | None,
    spelling: Matrix | None,
    weights: Mapping[LinkFeature, float],
    encoder_states: Matrix | None = None,
) -> WordScores:
    """Returns the product of the features, each to the power of its weight, normalized for each target word.

    The score of a pair is (a + 0.01) ** wa * (l + 0.003) ** wl * exp(ws * s) * (e + 0.01) ** we, for its share of
    attention a, its number in the lexicon l, its likeness in spelling s and that of its encoder's states e. The null
    share counts as a pair that the lexicon lacks and that is not alike. A weight of 0 leaves a feature out.

    Args:
        attention: The shares of attention.
        lexicon: float32 `[source words, target words]`; None: the feature has no part.
        spelling: Likewise.
        weights: The weight of each feature; a feature that is missing has no part.
        encoder_states: What `compare_states` says, float32 `[source words, target words]`; None: no part.
    """
    attention_weight = weights.get("attention", 0.0)
    if lexicon is None and spelling is None and encoder_states is None and attention_weight == 1.0:
        return attention
    # The last row is the null share. Logits are without what all words and the null share have in common.
    logits = np.concatenate((attention.scores, attention.null[None]))
    logits += ATTENTION_FLOOR
    np.log(logits, out=logits)
    logits *= attention_weight
    if lexicon is not None:
        logits[:-1] += weights.get("lexicon", 0.0) * np.log1p(lexicon * (1 / LEXICON_FLOOR))
    if spelling is not None:
        logits[:-1] += weights.get("spelling", 0.0) * spelling
    if encoder_states is not None:
        logits[:-1] += weights.get("encoder_states", 0.0) * np.log1p(encoder_states * (1 / _STATES_FLOOR))
    logits -= np.maximum.reduce(logits, 0)
    scores = np.exp(logits, out=logits)
    scores /= np.add.reduce(scores, 0)
    return WordScores(scores[:-1], scores[-1])


def parameters_of(weights: Mapping[LinkFeature, float]) -> Matrix:
    """Returns the weights for the compiled function: see `ScoreParameters`. It knows no states of the encoder."""
    attention = weights.get("attention", 0.0)
    is_plain = attention == 1.0 and "lexicon" not in weights and "spelling" not in weights
    lexicon, spelling = weights.get("lexicon", 0.0), weights.get("spelling", 0.0)
    numbers = (attention, lexicon, spelling, ATTENTION_FLOOR, LEXICON_FLOOR, SMALLEST_SUM, is_plain)
    return np.array(numbers, np.float32)
