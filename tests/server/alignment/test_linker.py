from dataclasses import replace

import numpy as np
import pytest
from sidelight.server.alignment import (
    AlignmentHead,
    AlignmentPreset,
    Lexicon,
    Linker,
    WordedText,
    split_words,
)
from sidelight.server.text import Token, find_words

_ATTENTION = AlignmentPreset((AlignmentHead(0, 0),), method="argmax", weights={"attention": 1.0})


def _cut(text: str, *, with_end: bool = False) -> list[Token]:
    """Tokens of two characters each."""
    ends = [(begin, min(len(text), begin + 2)) for begin in range(0, len(text), 2)]
    tokens = [Token(5, text[begin:end], begin, end, False, text[begin:end]) for begin, end in ends]
    return [*tokens, Token(1, "</s>", len(text), len(text), True, "")] if with_end else tokens


def test_the_lexicon_and_the_spelling_correct_the_attention() -> None:
    source, target = (WordedText.of_text(text, _cut(text)) for text in ("old Tom", "Tom alt"))
    rows = np.full((4, 4), 0.25, np.float32)
    lexicon = Lexicon.of_pairs([("old", "alt", 0.5)])
    preset = replace(_ATTENTION, weights={"attention": 1.0, "lexicon": 1.0, "spelling": 5.0}, lexicon=lexicon)
    assert [link[:2] for link in Linker(preset).link(rows, source, target)] == [(1, 0), (0, 1)]
    one = Linker(preset, features=["attention", "lexicon"]).link(rows, source, target)
    assert (0, 1) in [link[:2] for link in one]
    assert (1, 0) not in [link[:2] for link in one]


def test_the_lexicon_must_be_there() -> None:
    with pytest.raises(ValueError, match="no lexicon"):
        Linker(_ATTENTION, features=["lexicon"])


def test_words_of_white_space() -> None:
    assert split_words(" a,b  c\u00a0d\n") == [(1, 4), (6, 7), (8, 9)]
    assert find_words("a,b") == [(0, 1), (1, 2), (2, 3)]
