from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save
from sidelight.server.alignment import Lexicon
from sidelight.server.alignment.lexicon import LexiconError

_WORDS = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), min_size=1, max_size=4)
_TABLES = st.dictionaries(st.tuples(_WORDS, _WORDS), st.floats(0.01, 1), max_size=30)


@settings(deadline=None, max_examples=30)
@given(_TABLES)
def test_a_lexicon_is_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, table: dict[tuple[str, str], float]
) -> None:
    path = tmp_path_factory.mktemp("lexicon") / "lexicon.safetensors"
    Lexicon.of_pairs((*pair, score) for pair, score in table.items()).save(path)
    lexicon = Lexicon.load(path)
    assert len(lexicon) == len(table)
    source, target = sorted({pair[0] for pair in table} | {"?\n"}), sorted({pair[1] for pair in table} | {"?\n"})
    expected = [[table.get((one, other), 0.0) for other in target] for one in source]
    np.testing.assert_allclose(lexicon.score(source, target), expected, atol=0.5 / 255 + 1e-6)


def test_words_of_any_length_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.safetensors"
    words = ["a" * length for length in (1, 30, 31, 32, 33, 300)]
    Lexicon.of_pairs((word, word, 1.0) for word in words).save(path)
    np.testing.assert_array_equal(Lexicon.load(path).score(words, words), np.eye(len(words)))


_WHOLE = {
    "source_prefixes": np.array([0, 1], np.uint8),
    "source_words": np.frombuffer(b"a\nb", np.uint8),
    "target_prefixes": np.array([0], np.uint8),
    "target_words": np.frombuffer(b"c", np.uint8),
    "counts": np.array([1, 1], np.uint8),
    "targets": np.array([0, 0], np.uint16),
    "scores": np.array([100, 200], np.uint8),
}


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.safetensors"
    whole = save(_WHOLE)
    path.write_bytes(whole)
    np.testing.assert_allclose(Lexicon.load(path).score(["a", "ab"], ["c"])[:, 0], [100 / 255, 200 / 255], rtol=1e-6)
    path.write_bytes(whole[:-1])
    with pytest.raises(LexiconError, match="not a whole"):
        Lexicon.load(path)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("counts", np.array([1, 2], np.uint8), "do not fit"),
        ("counts", np.array([0, 2], np.uint8), "do not fit"),
        ("counts", np.array([2], np.uint8), "do not fit"),
        ("counts", np.array([2**32 - 1, 3], np.uint32), "do not fit"),
        ("counts", np.array([1, 1], np.int8), "no array counts"),
        ("counts", np.array([1, 1], np.uint64), "no array counts"),
        ("targets", np.array([0, 1], np.uint8), "do not fit"),
        ("targets", np.array([0], np.uint8), "do not fit"),
        ("scores", np.array([100], np.uint8), "do not fit"),
        ("scores", np.array([[100, 200]], np.uint8), "no array scores"),
        ("source_prefixes", np.array([0, 2], np.uint8), "do not fit"),
        ("source_prefixes", np.array([1, 0], np.uint8), "do not fit"),
        ("source_prefixes", np.array([0], np.uint8), "do not fit"),
        ("source_prefixes", np.array([0, 1], np.uint16), "no array source_prefixes"),
        ("target_words", np.frombuffer(b"\xff", np.uint8), "not UTF-8"),
        ("target_words", np.frombuffer(b"c\nd", np.uint8), "do not fit"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, numbers: NDArray[np.generic], message: str
) -> None:
    path = tmp_path / "lexicon.safetensors"
    path.write_bytes(save({**_WHOLE, name: numbers}))
    with pytest.raises(LexiconError, match=message):
        Lexicon.load(path)


def test_a_small_file_does_not_stand_for_words_without_end(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.safetensors"
    words = np.frombuffer(b"a" * 32 + b"\nb", np.uint8)
    path.write_bytes(save({**_WHOLE, "source_words": words, "source_prefixes": np.array([0, 32], np.uint8)}))
    with pytest.raises(LexiconError, match="do not fit"):
        Lexicon.load(path)
