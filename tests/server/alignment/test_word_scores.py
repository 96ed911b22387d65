import numpy as np
from sidelight.server.alignment.word_scores import score_words, source_columns, token_shares
from sidelight.server.text import Token


def _tokens(*spans: tuple[int, int]) -> list[Token]:
    return [Token(0, "", begin, end, begin < 0, "") for begin, end in spans]


_SOURCE = _tokens((0, 2), (2, 4), (4, 4), (4, 6), (-1, -1))  # the words "abcd" and "e", and an end token
_WORDS = [(0, 4), (5, 6)]


def test_tokens_belong_to_the_words_whose_characters_they_have() -> None:
    shares = token_shares("abcd e", _SOURCE, _WORDS)
    np.testing.assert_allclose(shares, [[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
    np.testing.assert_allclose(token_shares("ab cd ", _tokens((0, 6)), [(0, 2), (3, 5)]), [[0.5, 0.5]])


def test_sums_over_source_tokens_and_means_over_target_tokens() -> None:
    rows = np.array([[0.1, 0.2, 0.1, 0.1, 0.5], [0.3, 0.3, 0.0, 0.4, 0.0]], np.float32)
    target = token_shares("ab", _tokens((0, 1), (1, 2)), [(0, 2)])
    source = source_columns(token_shares("abcd e", _SOURCE, _WORDS), [False] * 4 + [True])
    kept = score_words(rows @ source, target, renormalizes=False)
    np.testing.assert_allclose(kept.scores, [[0.45], [0.3]], atol=1e-6)
    np.testing.assert_allclose(kept.null, [0.25])
    without = score_words(rows @ source, target, renormalizes=True)
    np.testing.assert_allclose(without.scores, [[0.6], [0.4]], atol=1e-6)
    np.testing.assert_allclose(without.null, [0.0])
