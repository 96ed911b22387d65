import numpy as np
import pytest
from sidelight.server.alignment import AlignmentHead, Lexicon, WordedText
from sidelight.server.alignment.calibration import NUM_STEPS, MeasuredPair, choose_preset
from sidelight.server.text import Token


def _text(words: list[str]) -> WordedText:
    text = " ".join(words)
    begins = [len(" ".join(words[:index])) + bool(index) for index in range(len(words))]
    tokens = [Token(9, word, begin, begin + len(word), False, word) for word, begin in zip(words, begins, strict=True)]
    end = Token(1, "</s>", len(text), len(text), True, "")
    return WordedText.of_text(text, [*tokens, end])


def _pairs(count: int, good: tuple[int, int]) -> list[MeasuredPair]:
    """Pairs of words in a random order, and heads of which one looks at the right word in the row "reading"."""
    chance = np.random.default_rng(5)
    pairs: list[MeasuredPair] = []
    for _ in range(count):
        size = int(chance.integers(3, 7))
        order = chance.permutation(size)
        words = [f"w{chance.integers(100)}x" for _ in range(size)]
        source, target = _text(words), _text([f"z{words[place][1:]}" for place in order])
        reference = np.zeros((size, size), np.bool_)
        reference[order, np.arange(size)] = True
        rows = chance.random((2, size + 1, size + 1, 2, 3)).astype(np.float32)
        rows[1, np.arange(size), order, good[0], good[1]] += 4
        rows /= rows.sum(2, keepdims=True)
        pairs.append(MeasuredPair(source, target, {"predicting": rows[0], "reading": rows[1]}, reference))
    return pairs


@pytest.mark.parametrize("good", [(0, 1), (1, 2)])
def test_the_good_head_and_its_row_are_found(good: tuple[int, int]) -> None:
    steps: list[int] = []
    preset = choose_preset(_pairs(30, good), None, "truth", lambda: steps.append(1))
    assert preset.heads[0][:2] == AlignmentHead(*good)[:2]
    assert preset.row == "reading"
    assert preset.lexicon is None
    assert "lexicon" not in preset.weights
    figures = preset.figures
    assert figures is not None
    assert (figures.num_pairs, figures.reference) == (30, "truth")
    assert figures.error_rate < 0.05
    rates = figures.head_error_rates
    assert np.unravel_index(np.argmin(rates["reading"]), (2, 3)) == good
    assert np.min(rates["predicting"]) > 0.4
    assert len(steps) == NUM_STEPS


def test_a_lexicon_is_used_where_it_helps() -> None:
    pairs = _pairs(30, (0, 1))
    noise = [
        MeasuredPair(pair.source, pair.target, dict.fromkeys(pair.rows, pair.rows["predicting"]), pair.reference)
        for pair in pairs
    ]
    lexicon = Lexicon.of_pairs((f"w{number}x", f"z{number}x", 0.9) for number in range(100))
    preset = choose_preset(noise, lexicon, "truth")
    assert preset.lexicon is lexicon
    assert preset.figures is not None
    assert preset.figures.error_rate < 0.1
