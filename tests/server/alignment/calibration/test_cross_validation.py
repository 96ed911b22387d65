import numpy as np
import pytest
from sidelight.server.alignment.calibration.cross_validation import cross_validate, gains_clearly


def _counts(common: np.ndarray) -> np.ndarray:
    """Pairs with ten links, ten reference links, and so many in common."""
    return np.stack([np.full_like(common, 10), np.full_like(common, 10), common, common], -1)


def test_a_pair_is_counted_by_the_way_that_is_best_on_the_other_folds() -> None:
    chance = np.random.default_rng(1)
    counts = _counts(chance.integers(0, 10, (6, 23)))
    found = cross_validate(counts)
    for pair in range(23):
        others = [number for number in range(23) if number % 5 != pair % 5]
        rates = [1 - 2 * way[others, 2].sum() / way[others, :2].sum() for way in counts]
        assert found[pair].tolist() == counts[int(np.argmin(rates)), pair].tolist()


def test_a_choice_that_fits_its_own_pairs_alone_gains_nothing() -> None:
    """Each way is right on one fold alone: the best way on the other folds is wrong on this fold."""
    common = np.array([[9 if pair % 5 == way else 1 for pair in range(50)] for way in range(5)])
    assert cross_validate(_counts(common))[:, 2].tolist() == [1] * 50


@pytest.mark.parametrize(
    ("gain", "num_pairs", "is_clear"),
    [
        (np.array([1, 1, 1, 1]), 100, True),
        (np.array([0, 0, 0, 0]), 100, False),
        (np.array([-1, -1, 0, -1]), 100, False),
        (np.array([4, -3, 3, -3]), 100, False),  # a gain of 0.025 that chance may have given
        (np.array([1, 0, 0, 0]), 400, True),
        (np.array([1, 1, 1, 1]), 19, False),  # too few pairs
    ],
)
def test_a_gain_is_clear_where_samples_of_the_pairs_agree(gain: np.ndarray, num_pairs: int, is_clear: bool) -> None:
    before = np.full(num_pairs, 5)
    after = before + np.resize(gain, num_pairs)
    assert gains_clearly(_counts(before), _counts(after)) is is_clear


def test_a_small_gain_is_not_clear_however_many_pairs_have_it() -> None:
    before = np.full(2000, 5)
    after = before + (np.arange(2000) % 20 == 0)  # 0.005 less error
    assert not gains_clearly(_counts(before), _counts(after))
