"""The compiled functions give what NumPy gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sidelight.kernels.cpu import links_words
from sidelight.server.alignment import AlignmentHead, AlignmentPreset, Lexicon, Linker, decisions, linker
from sidelight.server.alignment.decisions import rate_pairs
from sidelight.server.alignment.preset import SPECIAL_TOKENS
from sidelight.server.alignment.word_scores import WordScores

pytestmark = pytest.mark.skipif(not links_words(), reason="nothing is compiled on this machine")

_WORDS = ["haus", "häuser", "house", "x", "1984", "."]
_LEXICON = Lexicon.of_pairs([("house", "haus", 0.9), ("house", "häuser", 0.4), (".", ".", 0.2), ("x", "haus", 0.1)])


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    source_words=st.lists(st.sampled_from(_WORDS), max_size=6),
    target_words=st.lists(st.sampled_from(_WORDS), max_size=6),
    special_tokens=st.sampled_from(SPECIAL_TOKENS),
    weights=st.sampled_from(
        [
            {"attention": 1.0},
            {"attention": 0.7, "spelling": 5.0},
            {"attention": 0.5, "lexicon": 0.7},
            {"lexicon": 1.0, "spelling": 2.0, "attention": 1.0},
            {"lexicon": 1.0},
        ]
    ),
)
def test_scores_and_transport_are_those_of_numpy(seed, source_words, target_words, special_tokens, weights):
    chance = np.random.default_rng(seed)
    source = linker.WordedText.of_text(" ".join(source_words), ())
    num_tokens = int(chance.integers(1, 5))
    # Some tokens have no word, some words have no token, and some rows give nothing to words.
    sums = chance.random((num_tokens, len(source.words) + 2), np.float32) * (chance.random((num_tokens, 1)) < 0.8)
    sums = sums.astype(np.float32)
    shares = chance.random((num_tokens, len(target_words)), np.float32)
    shares *= chance.random(shares.shape) < 0.6
    sums.flags.writeable = False
    preset = AlignmentPreset((AlignmentHead(0, 0),), "reading", special_tokens, "argmax", {}, weights, _LEXICON)
    found: list[tuple[WordScores, np.ndarray]] = []
    for few in (1024, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linker, "FEW_NUMBERS", few)
            patch.setattr(decisions, "FEW_NUMBERS", few)
            scores = Linker(preset).score_words(sums, source, shares, target_words)
            found.append((scores, rate_pairs(scores, "optimal_transport")))
    (compiled, moved), (expected, expected_moved) = found
    np.testing.assert_allclose(compiled.scores, expected.scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(compiled.null, expected.null, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(moved, expected_moved, atol=1e-4)
