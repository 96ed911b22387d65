"""Whether a choice is better than another one on pairs of texts that had no part in the choice.

Counts of links are int64 `[pairs, 4]` for one way to link, and `[ways, pairs, 4]` for several: see `LinkCounts`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .measures import sum_counts

_NUM_FOLDS = 5

# What a clear gain is: so much less error, and less error in all but so many of these samples of the pairs, drawn with
# replacement (Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation"). With fewer pairs,
# chance decides.
_MIN_GAIN = 0.01
_NUM_SAMPLES, _MAX_SHARE = 2000, 0.025
_MIN_PAIRS = 20

Counts = NDArray[np.int64]


def cross_validate(counts: Counts) -> Counts:
    """Returns the counts of each pair by the way that is best on the pairs of the other folds, `[pairs, 4]`."""
    folds = np.arange(counts.shape[1]) % _NUM_FOLDS
    chosen = np.zeros(counts.shape[1:], np.int64)
    for fold in range(_NUM_FOLDS):
        best = _error_rates(counts[:, folds != fold].sum(1)).argmin()
        chosen[folds == fold] = counts[best, folds == fold]
    return chosen


def gains_clearly(before: Counts, after: Counts) -> bool:
    """Whether a way to link has clearly less error than the way before, both with the counts of the same pairs."""
    num_pairs = len(before)
    if num_pairs < _MIN_PAIRS or sum_counts(before).error_rate - sum_counts(after).error_rate < _MIN_GAIN:
        return False
    samples = np.random.default_rng(0).integers(num_pairs, size=(_NUM_SAMPLES, num_pairs))
    # How often each sample has each pair.
    weights = np.stack([np.bincount(sample, minlength=num_pairs) for sample in samples])
    is_worse = _error_rates(weights @ after) >= _error_rates(weights @ before)
    return bool(is_worse.mean() <= _MAX_SHARE)


def _error_rates(sums: Counts) -> NDArray[np.float64]:
    """The error rates of sums of counts, `[ways, 4]`, as `LinkCounts.error_rate` defines them."""
    found, wanted, common, allowed = sums.T
    return 1 - (common + allowed) / np.maximum(1, found + wanted)
