import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sidelight.server.alignment import LINK_METHODS, Link, LinkMethod
from sidelight.server.alignment.decisions import decide_links, guess_links
from sidelight.server.alignment.word_scores import WordScores

_SCORES = st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=32))
)


def _pairs(scores: object, method: LinkMethod, threshold: float = 0.0, null: object = 0.0) -> list[tuple[int, int]]:
    matrix = np.asarray(scores, np.float32)
    shares = np.broadcast_to(np.asarray(null, np.float32), matrix.shape[1])
    return [link[:2] for link in decide_links(WordScores(matrix, shares), method, threshold)]


def test_argmax_takes_the_best_source_word_of_each_target_word() -> None:
    scores = [[0.6, 0.1, 0.2], [0.3, 0.8, 0.3]]
    assert _pairs(scores, "argmax") == [(0, 0), (1, 1), (1, 2)]
    assert _pairs(scores, "argmax", null=[0, 0, 0.5]) == [(0, 0), (1, 1)]
    assert _pairs(scores, "argmax", threshold=0.7) == [(1, 1)]


def test_threshold_takes_all_pairs_above_it() -> None:
    assert _pairs([[0.6, 0.1], [0.4, 0.9]], "threshold", 0.35) == [(0, 0), (1, 0), (1, 1)]


def test_optimal_transport_shares_words_out() -> None:
    # By argmax both target words would go with the first source word, and the second source word with none.
    scores = [[0.9, 0.55], [0.1, 0.45]]
    assert _pairs(scores, "argmax") == [(0, 0), (0, 1)]
    assert _pairs(scores, "optimal_transport", 0.5) == [(0, 0), (1, 1)]


def test_itermax_begins_with_mutual_best_pairs() -> None:
    assert _pairs([[0.9, 0.8, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.6]], "itermax") == [(0, 0), (0, 1), (2, 2)]
    # In the second round a pair with a word that has a link counts for 0.9 of its score.
    assert _pairs([[0.9, 0.5], [0.0, 0.46]], "itermax") == [(0, 0), (1, 1)]
    assert _pairs([[0.9, 0.0], [0.0, 0.0]], "itermax") == [(0, 0)]


@pytest.mark.parametrize("method", LINK_METHODS)
@settings(deadline=None, max_examples=40)
@given(scores=_SCORES)
def test_links_are_in_range_in_order_and_finite(method: LinkMethod, scores: np.ndarray) -> None:
    links = decide_links(WordScores(scores, np.zeros(scores.shape[1], np.float32)), method, 0.3)
    assert links == sorted(links, key=lambda link: (link.target, link.source))
    assert len({link[:2] for link in links}) == len(links)
    for link in links:
        assert 0 <= link.source < scores.shape[0]
        assert 0 <= link.target < scores.shape[1]
        assert 0 <= link.score <= 1


@pytest.mark.parametrize("method", LINK_METHODS)
def test_words_without_any_score_stay_unaligned(method: LinkMethod) -> None:
    assert _pairs(np.zeros((3, 2)), method, 0.6) == []


def test_a_guess_is_the_best_target_word_of_a_source_word_without_links() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.05, 0.2, 0.3], [0.0, 0.0, 0.0]], np.float32)
    word_scores = WordScores(scores, np.zeros(3, np.float32))
    guesses = guess_links(word_scores, [Link(0, 0, 0.9)])
    assert [(guess.source, guess.target) for guess in guesses] == [(1, 2)]
    assert 0 < guesses[0].score < 0.1, "less than any link"
    assert guess_links(word_scores, [Link(0, 0, 0.9)], min_score=0.4) == []
