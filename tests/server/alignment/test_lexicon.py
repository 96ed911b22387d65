from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.safetensors"
    lexicon = Lexicon.of_pairs([("a", "b", 0.5), ("a", "c", 0.25)])
    lexicon.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(LexiconError, match="not a whole"):
        Lexicon.load(path)
    # `firsts` are 0 and 2, as little-endian int32.
    path.write_bytes(whole.replace(bytes([0, 0, 0, 0, 2, 0, 0, 0]), bytes([0, 0, 0, 0, 3, 0, 0, 0])))
    with pytest.raises(LexiconError, match="do not fit"):
        Lexicon.load(path)
