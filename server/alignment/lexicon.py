"""Lexicon: which words are translations of one another, as a pruned table; its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ...kernels.cpu import LexiconRows
from .word_scores import Matrix

# What a file has, and the most bytes of a number. Each array has the smallest type that holds its numbers. Words are in
# ascending order: `prefixes` says how many letters a word shares with the word before it, and `words` has the others.
_ARRAYS = {
    "source_prefixes": 1,
    "source_words": 1,
    "target_prefixes": 1,
    "target_words": 1,
    "counts": 4,  # of the pairs of each source word
    "targets": 4,
    "scores": 1,
}

# The most letters that a word may share: a small file must not stand for words without end.
_MAX_PREFIX = 31

# A score of the file is a whole number; it stands for itself / 255.
_SCALE = 255


class LexiconError(ValueError):
    """A file that holds no lexicon."""


class Lexicon:
    """How well pairs of words go together, from 0 to 1. Words are folded: see `fold_word`.

    The pairs of source word s are `targets[firsts[s] : firsts[s + 1]]`, in ascending order.
    """

    def __init__(
        self,
        source_words: Sequence[str],
        target_words: Sequence[str],
        firsts: NDArray[np.int32],
        targets: NDArray[np.int32],
        scores: NDArray[np.uint8],
    ) -> None:
        self._source = {word: index for index, word in enumerate(source_words)}
        self._target = {word: index for index, word in enumerate(target_words)}
        self._firsts, self._targets, self._scores = firsts, targets, scores

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[str, str, float]]) -> Lexicon:
        """Makes a lexicon of pairs of folded words with their scores, each pair at most once."""
        ordered = sorted((source, target, round(score * _SCALE)) for source, target, score in pairs)
        source_words = sorted({source for source, _, _ in ordered})
        target_words = sorted({target for _, target, _ in ordered})
        numbers = {word: index for index, word in enumerate(target_words)}
        source_numbers = {word: index for index, word in enumerate(source_words)}
        counts = np.bincount([source_numbers[source] for source, _, _ in ordered], minlength=len(source_words))
        return cls(
            source_words,
            target_words,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            np.array([numbers[target] for _, target, _ in ordered], np.int32),
            np.array([score for _, _, score in ordered], np.uint8),
        )

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self._targets)

    def score(self, source: Sequence[str], target: Sequence[str]) -> Matrix:
        """Returns the scores of all pairs of folded words, float32 `[source words, target words]`.

        0 stands for a pair that the table does not have.
        """
        return self.select(source).score(target)

    def select(self, source: Sequence[str]) -> SourceLexicon:
        """Selects the pairs of the folded words of a source."""
        numbers = np.array([self._source.get(word, -1) for word in source], np.int32)
        return SourceLexicon(numbers, self._target, self._firsts, self._targets, self._scores)

    # ---- file -------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes the lexicon as a safetensors file."""
        words = {"source": _join_words(self._source), "target": _join_words(self._target)}
        arrays = {f"{side}_prefixes": prefixes for side, (prefixes, _) in words.items()}
        arrays |= {f"{side}_words": joined for side, (_, joined) in words.items()}
        arrays |= {"counts": np.diff(self._firsts), "targets": self._targets, "scores": self._scores}
        arrays = {name: numbers.astype(np.min_scalar_type(numbers.max(initial=0))) for name, numbers in arrays.items()}
        replace_file(path, save(arrays))  # `save_file` would make a file that its owner alone may read

    @classmethod
    def load(cls, path: Path) -> Lexicon:
        """Reads a file that `save` has written. Raises LexiconError."""
        try:
            arrays = load_file(path)
        except (SafetensorError, OSError) as error:
            raise LexiconError("is not a whole safetensors file") from error
        for name, size in _ARRAYS.items():
            array = arrays.get(name)
            if array is None or array.ndim != 1 or array.dtype.kind != "u" or array.itemsize > size:
                raise LexiconError(f"has no array {name} of the right type")
        try:
            source, target = (
                _split_words(arrays[f"{side}_prefixes"], arrays[f"{side}_words"]) for side in ("source", "target")
            )
        except UnicodeDecodeError as error:
            raise LexiconError("has words that are not UTF-8") from error
        counts, targets, scores = arrays["counts"], arrays["targets"], arrays["scores"]
        # Each source word has a pair: otherwise it would have no place in the file.
        if (
            source is None
            or target is None
            or len(counts) != len(source)
            or not counts.all()
            or not counts.sum(dtype=np.uint64) == len(targets) == len(scores)
            or (targets >= len(target)).any()
        ):
            raise LexiconError("has numbers that do not fit its words")
        firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return cls(source, target, firsts, targets.astype(np.int32), scores)


class SourceLexicon:
    """The pairs of a lexicon whose source words one text has."""

    def __init__(
        self,
        source: NDArray[np.int32],
        numbers: Mapping[str, int],
        firsts: NDArray[np.int32],
        targets: NDArray[np.int32],
        scores: NDArray[np.uint8],
    ) -> None:
        """`source` are the numbers of the words of the text, or -1; `numbers` are those of target words."""
        self._source, self._numbers = source, numbers
        self._firsts, self._targets, self._scores = firsts, targets, scores

    def rows(self, target: Sequence[str]) -> LexiconRows:
        """Returns where the table has the words of the text and the folded words of a target."""
        numbers = np.array([self._numbers.get(word, -1) for word in target], np.int32)
        return LexiconRows(self._source, numbers, self._firsts, self._targets, self._scores)

    def score(self, target: Sequence[str]) -> Matrix:
        """Returns the scores of the source with the folded words of a target, as `Lexicon.score` does."""
        rows = self.rows(target)
        columns, columns_of_words = np.unique(rows.target, return_inverse=True)
        entries, sources = self._entries
        if not len(columns) or not len(entries):
            return np.zeros((len(self._source), len(target)), np.float32)
        found = self._targets[entries]
        places = np.minimum(np.searchsorted(columns, found), len(columns) - 1)
        is_pair = columns[places] == found
        scores = np.zeros((len(self._source), len(columns)), np.float32)
        scores[sources[is_pair], places[is_pair]] = self._scores[entries[is_pair]] / np.float32(_SCALE)
        return scores[:, columns_of_words]

    @cached_property
    def _entries(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The places in the table of all pairs of the words of the text, and the number of the word in the text."""
        words = np.flatnonzero(self._source >= 0)
        begins, ends = self._firsts[self._source[words]], self._firsts[self._source[words] + 1]
        counts = ends - begins
        before = np.cumsum(counts) - counts  # the pairs of the words before each word
        return np.repeat(begins - before, counts) + np.arange(counts.sum()), np.repeat(words, counts)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves the file that was there: no reader ever finds a part."""
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _join_words(words: Iterable[str]) -> tuple[NDArray[np.int_], NDArray[np.uint8]]:
    """Returns how many letters each word shares with the word before it, and the other letters, in lines."""
    prefixes: list[int] = []
    others: list[str] = []
    before = ""
    for word in words:
        letters = zip(before[:_MAX_PREFIX], word, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], letters))
        prefixes.append(shared)
        others.append(word[shared:])
        before = word
    return np.array(prefixes, int), np.frombuffer("\n".join(others).encode(), np.uint8)


def _split_words(prefixes: NDArray[np.unsignedinteger], words: NDArray[np.uint8]) -> list[str] | None:
    """Returns the words that `_join_words` has joined; None if the numbers do not fit the letters."""
    others = words.tobytes().decode().split("\n") if len(words) else []
    if len(others) != len(prefixes):
        return None
    found: list[str] = []
    before = ""
    for shared, other in zip(prefixes.tolist(), others, strict=True):
        if shared > min(len(before), _MAX_PREFIX):
            return None
        before = before[:shared] + other
        found.append(before)
    return found
