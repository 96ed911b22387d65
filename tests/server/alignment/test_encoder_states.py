"""How alike the encoder's states of words are, beside a calculation word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sidelight.server.alignment import Linker, compare_states, default_preset
from sidelight.server.alignment.features import combine_features
from sidelight.server.alignment.linker import WordedText
from sidelight.server.alignment.target_links import TargetLinks
from sidelight.server.alignment.word_scores import WordScores
from sidelight.server.text import Token


def naive(source: np.ndarray, source_shares: np.ndarray, target: np.ndarray, target_shares: np.ndarray) -> np.ndarray:
    """The means of states, their cosines, and both softmaxes, number by number in float64."""

    def vectors(states: np.ndarray, shares: np.ndarray) -> list[list[float]]:
        found: list[list[float]] = []
        for word in range(shares.shape[1]):
            total = float(shares[:, word].sum()) or 1.0
            found.append(
                [
                    sum(float(shares[token, word]) * float(states[token, place]) for token in range(len(states)))
                    / total
                    for place in range(states.shape[1])
                ]
            )
        return found

    def cosine(one: list[float], other: list[float]) -> float:
        lengths = math.hypot(*one) * math.hypot(*other)
        return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0

    powers = [
        [math.exp(cosine(one, other) / 0.1) for other in vectors(target, target_shares)]
        for one in vectors(source, source_shares)
    ]
    columns = [sum(row[column] for row in powers) for column in range(len(powers[0]))]
    return np.array(
        [
            [math.sqrt(power / sum(row) * (power / total)) for power, total in zip(row, columns, strict=True)]
            for row in powers
        ]
    )


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))
def test_the_numbers_are_those_of_a_calculation_word_by_word(seed, num_source, num_target, source_words, target_words):
    chance = np.random.default_rng(seed)
    states = [chance.normal(size=(count, 7)).astype(np.float32) for count in (num_source, num_target)]
    # Some tokens have no word, and some words have no token.
    shares = [
        (chance.random((count, words)) * (chance.random((count, words)) < 0.5)).astype(np.float32)
        for count, words in ((num_source, source_words), (num_target, target_words))
    ]
    found = compare_states(states[0], shares[0], states[1], shares[1])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive(states[0], shares[0], states[1], shares[1]), atol=1e-5)


def test_texts_without_words_have_no_pairs():
    states = np.ones((3, 4), np.float32)
    assert compare_states(states, np.zeros((3, 0), np.float32), states, np.ones((3, 2), np.float32)).shape == (0, 2)


def test_the_feature_multiplies_the_score():
    attention = WordScores(np.array([[0.6, 0.1], [0.3, 0.8]], np.float32), np.array([0.1, 0.1], np.float32))
    alike = np.array([[0.2, 0.9], [0.5, 0.0]], np.float32)
    found = combine_features(attention, None, None, {"attention": 1.0, "encoder_states": 0.5}, alike)
    scores = (attention.scores + 0.01) * np.sqrt(alike + 0.01)
    null = (attention.null + 0.01) * 0.1
    np.testing.assert_allclose(found.scores, scores / (scores.sum(0) + null), rtol=1e-5)
    np.testing.assert_allclose(found.null, null / (scores.sum(0) + null), rtol=1e-5)


def test_a_linker_with_the_feature_needs_states_of_a_whole_target():
    text = WordedText.of_text("a", [Token(1, "a", 0, 1, False, "a")])
    linker = Linker(default_preset(1, 1), features=["attention", "encoder_states"])
    assert linker.has_encoder_states
    rows = np.ones((1, 1), np.float32)
    assert len(linker.link(rows, text, text, rows)) == 1
    with pytest.raises(ValueError, match="needs states"):
        linker.link(rows, text, text)
    with pytest.raises(ValueError, match="grows"):
        TargetLinks(linker, text)
