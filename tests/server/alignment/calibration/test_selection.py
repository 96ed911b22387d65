import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sidelight.server.alignment import (
    PRESET_FILE,
    AlignmentHead,
    Lexicon,
    Linker,
    PresetError,
    WordedText,
    read_preset,
    write_preset,
)
from sidelight.server.alignment.calibration import NUM_STEPS, STATES_WEIGHTS, MeasuredPair, choose_preset
from sidelight.server.alignment.word_scores import WordScores
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


@pytest.mark.parametrize("are_good", [True, False])
def test_encoder_states_are_used_only_where_they_lower_the_error_clearly(are_good: bool) -> None:
    """Heads that look anywhere, and states that say which words belong together, or that say nothing."""
    chance = np.random.default_rng(7)
    pairs: list[MeasuredPair] = []
    for pair in _pairs(40, (0, 1)):
        noise = chance.random(pair.reference.shape).astype(np.float32) / 2
        rows = dict.fromkeys(pair.rows, pair.rows["predicting"])
        states = noise + 0.5 * pair.reference if are_good else noise
        pairs.append(MeasuredPair(pair.source, pair.target, rows, pair.reference, states))
    preset = choose_preset(pairs, None, "truth")
    assert preset.figures is not None
    assert preset.figures.states_error_rates is not None
    without, with_states = preset.figures.states_error_rates
    if are_good:
        assert preset.weights["encoder_states"] in STATES_WEIGHTS
        assert with_states < without - 0.1
        assert preset.figures.error_rate < without - 0.1
        # Links that are made without the states are decided as without a choice of the states.
        alone = choose_preset([replace(pair, encoder_states=None) for pair in pairs], None, "truth")
        assert preset.without_states == alone.decision(has_states=True)
        assert alone.without_states is None
    else:
        unmeasured = [replace(pair, encoder_states=None) for pair in pairs]
        expected = choose_preset(unmeasured, None, "truth")
        assert expected.figures is not None
        assert expected.figures.states_error_rates is None
        assert preset == replace(expected, figures=replace(expected.figures, states_error_rates=(without, with_states)))


def test_figures_of_encoder_states_are_kept_in_the_file(tmp_path: Path) -> None:
    pairs = [
        replace(pair, rows=dict.fromkeys(pair.rows, pair.rows["predicting"]), encoder_states=pair.reference / 2)
        for pair in _pairs(30, (0, 1))
    ]
    preset = choose_preset(pairs, None, "truth")
    write_preset(preset, tmp_path / PRESET_FILE)
    fields = json.loads((tmp_path / PRESET_FILE).read_text())
    assert preset.without_states is not None
    assert read_preset(fields, tmp_path, 2, 3) == preset
    live = Linker(preset, features=list(preset.without_states.weights))
    alone = Linker(replace(preset, **vars(preset.without_states), without_states=None))
    assert (live.method, live.has_encoder_states) == (alone.method, False)
    scores = WordScores(np.full((1, 20), 0.0, np.float32), np.zeros(20, np.float32))
    scores.scores[0] = np.linspace(0, 1, 20)
    assert live.decide(scores) == alone.decide(scores)
    for field, value, problem in (
        ("weights", {"encoder_states": 0.5}, r"without_states\.weights\.encoder_states contradicts"),
        ("weights", {"lexicon": 0.5}, r"without_states\.weights\.lexicon needs a lexicon"),
        ("method", "best", r"without_states\.method must be one of"),
    ):
        broken = {**fields, "without_states": {**fields["without_states"], field: value}}
        with pytest.raises(PresetError, match=problem):
            read_preset(broken, tmp_path, 2, 3)
    fields["figures"]["states_error_rates"] = [0.5]
    with pytest.raises(PresetError, match=r"figures\.states_error_rates must be two numbers or null"):
        read_preset(fields, tmp_path, 2, 3)
