"""How alike two words are written: names and numbers stay, cognates begin alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from .word_scores import Matrix

# The fewest characters of a common beginning that counts, and the least share of the longer word.
_MIN_BEGINNING = 4
_MIN_SHARE = 0.5


def fold_word(word: str) -> str:
    """Returns the form of a word in which words are compared: NFKC, without case."""
    return unicodedata.normalize("NFKC", word).casefold()


def compare_spelling(source: Sequence[str], target: Sequence[str]) -> Matrix:
    """Returns how alike the words of both texts are written, float32 `[source words, target words]`, from 0 to 1.

    1 stands for words that are the same. Words with a common beginning of at least four characters, and half of the
    longer word, get the share of the longer word that the beginning has. The words must be folded.
    """
    alike = np.zeros((len(source), len(target)), np.float32)
    places: dict[str, list[int]] = {}
    for column, word in enumerate(target):
        places.setdefault(word, []).append(column)
    beginnings: dict[str, list[int]] = {}
    for word, columns in places.items():
        if len(word) >= _MIN_BEGINNING:
            beginnings.setdefault(word[:_MIN_BEGINNING], []).extend(columns)
    for row, word in enumerate(source):
        for column in beginnings.get(word[:_MIN_BEGINNING], ()) if len(word) >= _MIN_BEGINNING else ():
            share = _common_beginning(word, target[column]) / max(len(word), len(target[column]))
            alike[row, column] = share if share >= _MIN_SHARE else 0.0
        for column in places.get(word, ()):
            alike[row, column] = 1.0
    return alike


def _common_beginning(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
