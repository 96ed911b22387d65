import numpy as np
from sidelight.server.alignment.calibration import learn_lexicon
from sidelight.server.alignment.calibration.ibm_model import learn_word_table


def _learn_slowly(
    sources: list[list[int]], targets: list[list[int]], num_iterations: int
) -> dict[tuple[int, int], float]:
    """The algorithm of Brown et al. word by word, with the same prior counts."""
    pairs = {(s, t) for source, target in zip(sources, targets, strict=True) for s in (0, *source) for t in target}
    table = dict.fromkeys(pairs, 1.0)
    for _ in range(num_iterations):
        counts = dict.fromkeys(pairs, 0.01)
        for source, target in zip(sources, targets, strict=True):
            for t in target:
                total = sum(table[s, t] for s in (0, *source))
                for s in (0, *source):
                    counts[s, t] += table[s, t] / total
        table = {(s, t): count / sum(c for (o, _), c in counts.items() if o == s) for (s, t), count in counts.items()}
    return table


def test_a_table_is_that_of_the_algorithm_word_by_word() -> None:
    chance = np.random.default_rng(3)
    sources = [chance.integers(1, 9, chance.integers(1, 6)).tolist() for _ in range(12)]
    targets = [chance.integers(1, 7, chance.integers(1, 6)).tolist() for _ in range(12)]
    table = learn_word_table(sources, targets, 4)
    expected = _learn_slowly(sources, targets, 4)
    assert len(table.source) == len(expected)
    for source, target, probability in zip(table.source, table.target, table.probabilities, strict=True):
        assert abs(probability - expected[int(source), int(target)]) < 1e-9


def test_a_lexicon_of_a_small_language() -> None:
    sources = [["a", "dog"], ["a", "cat"], ["old", "dog"], ["old", "cat"]] * 5
    targets = [["ein", "hund"], ["eine", "katze"], ["alter", "hund"], ["alte", "katze"]] * 5
    steps: list[int] = []
    lexicon = learn_lexicon(sources, targets, lambda: steps.append(1))
    scores = lexicon.score(["dog", "cat"], ["hund", "katze"])
    assert scores[0, 0] > 0.7
    assert scores[1, 1] > 0.7
    assert scores[0, 1] == scores[1, 0] == 0
    assert len(steps) == 10
