from itertools import product

import pytest
from sidelight.server.alignment.calibration import align_statistically, reference

_WORDS = {"a": "ein", "the": "der", "dog": "hund", "ox": "ochse", "cow": "kuh", "sleeps": "schläft", "runs": "läuft"}
_SOURCES = [list(words) for words in product(["a", "the"], ["dog", "ox", "cow"], ["sleeps", "runs"])] * 4
_TARGETS = [[_WORDS[verb], _WORDS[article], _WORDS[noun]] for article, noun, verb in _SOURCES]


@pytest.mark.parametrize("has_eflomal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_words_that_occur_together_are_linked(has_eflomal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_eflomal:
        pytest.importorskip("eflomal")
    monkeypatch.setattr(reference, "has_eflomal", lambda: has_eflomal)
    links, name = align_statistically(_SOURCES, _TARGETS, 4)
    assert name.startswith("eflomal 2" if has_eflomal else "sidelight ibm1")
    assert len(links) == 4
    for each in links:
        assert {link[:2] for link in each} == {(2, 0), (0, 1), (1, 2)}
