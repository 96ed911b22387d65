"""Linker: links the words of a pair of texts, as a preset and a request say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..text import Span, Token, WordFinder, find_words
from .decisions import LinkMethod, decide_links
from .features import DEFAULT_WEIGHTS, LinkFeature, combine_features
from .lexicon import Lexicon, SourceLexicon
from .links import Link
from .preset import AlignmentPreset
from .spelling import SourceSpelling, fold_word
from .word_scores import Matrix, WordScores, score_words, token_shares


@dataclass(frozen=True)
class WordedText:
    """A text, its tokens, and its words in ascending order without overlaps."""

    text: str
    tokens: Sequence[Token]
    words: Sequence[Span]

    @classmethod
    def of_text(cls, text: str, tokens: Sequence[Token], *, is_pretokenized: bool = False) -> WordedText:
        """Finds the words of a text: those of Unicode, or what white space separates."""
        return cls(text, tokens, split_words(text) if is_pretokenized else find_words(text))

    @cached_property
    def folded(self) -> list[str]:
        """The words, folded."""
        return [fold_word(self.text[begin:end]) for begin, end in self.words]

    @cached_property
    def shares(self) -> Matrix:
        """Which share of each token belongs to each word, float32 `[tokens, words]`."""
        return token_shares(self.text, self.tokens, self.words)

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """Which tokens are special, `[tokens]`."""
        return np.array([token.special for token in self.tokens], np.bool_)

    @cached_property
    def spelling(self) -> SourceSpelling:
        """The words by their beginnings."""
        return SourceSpelling(self.folded)

    @cached_property
    def _lexicons(self) -> dict[Lexicon, SourceLexicon]:
        return {}

    def select_lexicon(self, lexicon: Lexicon) -> SourceLexicon:
        """Returns the pairs of a lexicon that have words of this text as source words. They are selected once."""
        selected = self._lexicons.get(lexicon)
        if selected is None:
            selected = self._lexicons[lexicon] = lexicon.select(self.folded)
        return selected


def split_words(text: str) -> list[Span]:
    """Returns what white space separates."""
    spans: list[Span] = []
    end = 0
    for word in text.split():
        begin = text.index(word, end)
        end = begin + len(word)
        spans.append((begin, end))
    return spans


class Linker:
    """Links the words of pairs of texts. It has no state: all threads may use it."""

    def __init__(
        self, preset: AlignmentPreset, method: LinkMethod | None = None, features: Sequence[LinkFeature] = ()
    ) -> None:
        """`method` and `features` replace those of the preset. "lexicon" needs a preset with a lexicon."""
        self.preset = preset
        self.method: LinkMethod = method or preset.method
        self._threshold = preset.threshold(self.method)
        names: Iterable[LinkFeature] = features or preset.weights
        self._weights: dict[LinkFeature, float] = {
            name: preset.weights.get(name, DEFAULT_WEIGHTS[name]) for name in names
        }
        if "lexicon" in self._weights and preset.lexicon is None:
            raise ValueError("the preset has no lexicon")

    def link(self, rows: Matrix, source: WordedText, target: WordedText) -> list[Link]:
        """Returns the links of a pair, in the order of the target.

        Args:
            rows: float32 `[target tokens, source tokens]`: the weighted mean of the preset's heads, for the preset's
                row, with special tokens as the preset says.
            source: The source, with its special tokens.
            target: The target. The rows of its special tokens have no part.
        """
        return self.decide(self.score(rows, source, target))

    def score(self, rows: Matrix, source: WordedText, target: WordedText) -> WordScores:
        """Returns the scores of all pairs of words."""
        return self._score(rows, source, target.shares, target.folded)

    def decide(self, scores: WordScores) -> list[Link]:
        """Returns the links of a pair of texts whose words have these scores, in the order of the target."""
        return decide_links(scores, self.method, self._threshold)

    def follow(self, source: WordedText) -> TargetLinks:
        """Links the words of a target that grows."""
        return TargetLinks(self, source)

    def link_word(self, rows: Matrix, source: WordedText, shares: Matrix, word: str, number: int) -> list[Link]:
        """Returns the links of a single target word, by argmax or threshold alone: other methods need all words.

        `rows` and `shares` are those of the tokens of the word, `[tokens, source tokens]` and `[tokens, 1]`.
        """
        scores = self._score(rows, source, shares, [fold_word(word)])
        method: LinkMethod = "threshold" if self.method == "threshold" else "argmax"
        links = decide_links(scores, method, self.preset.threshold(method))
        return [link._replace(target=number) for link in links]

    def _score(self, rows: Matrix, source: WordedText, target_shares: Matrix, target: Sequence[str]) -> WordScores:
        renormalizes = self.preset.special_tokens == "renormalize"
        attention = score_words(rows, source.shares, target_shares, source.is_special, renormalizes=renormalizes)
        lexicon = spelling = None
        if "lexicon" in self._weights and self.preset.lexicon is not None:
            lexicon = source.select_lexicon(self.preset.lexicon).score(target)
        if "spelling" in self._weights:
            spelling = source.spelling.compare(target)
        return combine_features(attention, lexicon, spelling, self._weights)


class TargetLinks:
    """The links of one target that grows, word by word. The links of complete words do not change.

    A word is complete where no further text can move its end.
    """

    def __init__(self, linker: Linker, source: WordedText) -> None:
        self._linker = linker
        self._source = source
        self._finder = WordFinder()
        self._tokens: list[Token] = []  # those that a word which is not complete may have
        self._rows: list[Matrix] = []
        self._num_words = 0

    def add(self, token: Token, row: Matrix, text: str) -> list[Link]:
        """Adds a token with its row, float32 `[source tokens]`. Returns the links of words that are now complete.

        `text` is the text so far.
        """
        self._tokens.append(token)
        self._rows.append(row)
        return self._link(self._finder.grow(text), text)

    def finish(self, text: str) -> list[Link]:
        """Ends the text. Returns the links of the words that were not complete."""
        return self._link(self._finder.finish(text), text)

    def _link(self, words: list[Span], text: str) -> list[Link]:
        links: list[Link] = []
        for begin, end in words:
            shares = token_shares(text, self._tokens, [(begin, end)])
            links += self._linker.link_word(
                np.array(self._rows, np.float32), self._source, shares, text[begin:end], self._num_words
            )
            self._num_words += 1
            # The last token of a word may have characters of the next word. A token that covers nothing belongs to the
            # next token.
            done = [i for i, token in enumerate(self._tokens) if token.begin < token.end <= end]
            num_done = done[-1] + 1 if done else 0
            del self._tokens[:num_done], self._rows[:num_done]
        return links
