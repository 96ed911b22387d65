import numpy as np
from sidelight.server.alignment.spelling import compare_spelling, fold_word


def test_identical_words_and_common_beginnings() -> None:
    alike = compare_spelling(["tom", "1984", "president", "a", "interest"], ["tom", "präsident", "1984", "internet"])
    np.testing.assert_allclose(alike[0], [1, 0, 0, 0])
    np.testing.assert_allclose(alike[1], [0, 0, 1, 0])
    np.testing.assert_allclose(alike[2], [0, 0, 0, 0])
    np.testing.assert_allclose(alike[4], [0, 0, 0, 5 / 8])  # "inter" of eight characters
    assert compare_spelling(["kommissar"], ["kommissarin"])[0, 0] == np.float32(9 / 11)
    assert compare_spelling(["internationally"], ["internet"])[0, 0] == 0  # less than half of the longer word


def test_words_are_folded() -> None:
    assert fold_word("STRASSE") == fold_word("Straße")
    assert fold_word("\uff11") == "1"
