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
    return word.lower() if word.isascii() else unicodedata.normalize("NFKC", word).casefold()


class SourceSpelling:
    """The words of a source by their beginnings, to be compared with words of targets. The words must be folded."""

    def __init__(self, source: Sequence[str]) -> None:
        self._source = source
        self._places: dict[str, list[int]] = {}
        for row, word in enumerate(source):
            self._places.setdefault(word, []).append(row)
        self._beginnings: dict[str, list[int]] = {}
        for word, rows in self._places.items():
            if len(word) >= _MIN_BEGINNING:
                self._beginnings.setdefault(word[:_MIN_BEGINNING], []).extend(rows)

    def compare(self, target: Sequence[str]) -> Matrix:
        """Returns how alike the words of both texts are written, float32 `[source words, target words]`, from 0 to 1.

        1 stands for words that are the same. Words with a common beginning of at least four characters, and half of the
        longer word, get the share of the longer word that the beginning has.
        """
        alike = np.zeros((len(self._source), len(target)), np.float32)
        for column, word in enumerate(target):
            for row, share in self.compare_word(word).items():
                alike[row, column] = share
        return alike

    def compare_word(self, word: str) -> dict[int, float]:
        """Returns what `compare` says of one word of a target, by the number of the source word. Without zeros."""
        alike: dict[int, float] = {}
        # A word that is shorter than a beginning is none of the beginnings.
        for row in self._beginnings.get(word[:_MIN_BEGINNING], ()):
            source_word = self._source[row]
            share = _common_beginning(source_word, word) / max(len(source_word), len(word))
            if share >= _MIN_SHARE:
                alike[row] = share
        for row in self._places.get(word, ()):
            alike[row] = 1.0
        return alike


def compare_spelling(source: Sequence[str], target: Sequence[str]) -> Matrix:
    """Returns how alike the words of two texts are written, as `SourceSpelling.compare` does."""
    return SourceSpelling(source).compare(target)


def _common_beginning(one: str, other: str) -> int:
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
