import numpy as np
import pytest
from sidelight.server.alignment.calibration import LinkCounts, count_links


def _matrix(*links: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros((3, 4), np.bool_)
    for link in links:
        matrix[link] = True
    return matrix


def test_the_error_rate_tells_sure_links_from_possible_ones() -> None:
    """Och and Ney 2003: AER is 1 - (|A & S| + |A & P|) / (|A| + |S|), and P has S."""
    sure, possible = _matrix((0, 0), (1, 1), (2, 2)), _matrix((1, 2), (2, 3))
    found = _matrix((0, 0), (1, 2), (1, 1), (0, 3))
    counts = count_links([(found, sure, possible), (_matrix((0, 1)), _matrix((0, 1), (1, 0)), None)])
    # The first pair has 4 found links, 3 sure links, 2 in common, and 3 that are allowed; the second 1, 2, 1 and 1.
    assert counts == LinkCounts(5, 5, 3, 4)
    assert counts.error_rate == pytest.approx(1 - (3 + 4) / (5 + 5))
    assert counts.precision == pytest.approx(4 / 5)
    assert counts.recall == pytest.approx(3 / 5)
    as_sure = count_links([(found, sure | possible, None)])
    assert as_sure.error_rate == pytest.approx(1 - 2 * 3 / (4 + 5)), "otherwise possible links are wanted as well"
