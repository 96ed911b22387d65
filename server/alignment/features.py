"""What the score of a pair of words is made of: attention, lexicon and spelling, each with a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from .word_scores import Matrix, WordScores

LinkFeature = Literal["attention", "lexicon", "spelling"]
LINK_FEATURES: tuple[LinkFeature, ...] = get_args(LinkFeature)

DEFAULT_WEIGHTS: Mapping[LinkFeature, float] = {"attention": 1.0, "lexicon": 1.0, "spelling": 5.0}

# What is added to a share of attention and to a number of the lexicon, so that none of them excludes a pair alone.
_ATTENTION_FLOOR = 0.01
_LEXICON_FLOOR = 0.003


def combine_features(
    attention: WordScores, lexicon: Matrix | None, spelling: Matrix | None, weights: Mapping[LinkFeature, float]
) -> WordScores:
    """Returns the product of the features, each to the power of its weight, normalized for each target word.

    The score of a pair is (a + 0.01) ** wa * (l + 0.003) ** wl * exp(ws * s), for its share of attention a, its number
    in the lexicon l and its likeness in spelling s. To go with no word is a pair without a number in the lexicon and
    without likeness. A weight of 0 leaves a feature out.

    Args:
        attention: The shares of attention.
        lexicon: float32 `[source words, target words]`; None: the feature has no part.
        spelling: Likewise.
        weights: The weight of each feature; a feature that is missing has no part.
    """
    attention_weight = weights.get("attention", 0.0)
    if lexicon is None and spelling is None and attention_weight == 1.0:
        return attention
    logits = attention_weight * np.log(attention.scores + np.float32(_ATTENTION_FLOOR))
    null = attention_weight * np.log(attention.null + np.float32(_ATTENTION_FLOOR))
    if lexicon is not None:
        weight = weights.get("lexicon", 0.0)
        logits += weight * np.log(lexicon + np.float32(_LEXICON_FLOOR))
        null += np.float32(weight * np.log(_LEXICON_FLOOR))
    if spelling is not None:
        logits += np.float32(weights.get("spelling", 0.0)) * spelling
    highest = np.maximum(logits.max(0, initial=-np.inf), null)
    scores, null = np.exp(logits - highest), np.exp(null - highest)
    total = scores.sum(0) + null
    return WordScores((scores / total).astype(np.float32), (null / total).astype(np.float32))
