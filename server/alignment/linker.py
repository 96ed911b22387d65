"""Linker: links the words of a pair of texts, as a preset and a request say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...kernels import cpu as kernels
from ..text import Span, Token, find_words
from .decisions import LinkMethod, decide_links
from .features import DEFAULT_WEIGHTS, LinkFeature, combine_features, parameters_of
from .lexicon import Lexicon, SourceLexicon
from .links import Link
from .preset import AlignmentPreset
from .spelling import SourceSpelling, fold_word
from .word_scores import FEW_NUMBERS, Matrix, WordScores, score_words, source_columns, token_shares


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
    def columns(self) -> Matrix:
        """What rows are multiplied with, where the text is a source: see `source_columns`."""
        return source_columns(self.shares, [token.special for token in self.tokens])

    def sum_rows(self, rows: Matrix) -> Matrix:
        """Returns what rows give to the words of this text, and to special and other tokens: see `score_words`."""
        return np.asarray(rows, np.float32) @ self.columns

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
    """Links the words of pairs of texts. It has no state: all threads may use it.

    Attributes:
        preset: The preset.
        method: How links are decided.
        decides_together: Whether the links of a word depend on all words of the target.
    """

    def __init__(
        self, preset: AlignmentPreset, method: LinkMethod | None = None, features: Sequence[LinkFeature] = ()
    ) -> None:
        """`method` and `features` replace those of the preset. "lexicon" needs a preset with a lexicon.

        With "encoder_states", the words of whole pairs alone can be linked, from their states too.
        """
        self.preset = preset
        names: Iterable[LinkFeature] = features or preset.weights
        decision = preset.decision(has_states="encoder_states" in names)
        self.method: LinkMethod = method or decision.method
        self._threshold = decision.threshold(self.method)
        self._weights: dict[LinkFeature, float] = {
            name: decision.weights.get(name, DEFAULT_WEIGHTS[name]) for name in names
        }
        if "lexicon" in self._weights and preset.lexicon is None:
            raise ValueError("the preset has no lexicon")
        self._lexicon = preset.lexicon if "lexicon" in self._weights else None
        self._compares_spelling = "spelling" in self._weights
        self._renormalizes = preset.special_tokens == "renormalize"
        self.decides_together = self.method not in ("argmax", "threshold")
        self._parameters = kernels.ScoreParameters(parameters_of(self._weights), self._renormalizes)
        # What decides the links of single words.
        self._word_method: LinkMethod = "threshold" if self.method == "threshold" else "argmax"
        self._word_threshold = decision.threshold(self._word_method)

    @property
    def has_encoder_states(self) -> bool:
        """Whether the scores need what `compare_states` says."""
        return "encoder_states" in self._weights

    def link(
        self, rows: Matrix, source: WordedText, target: WordedText, encoder_states: Matrix | None = None
    ) -> list[Link]:
        """Returns the links of a pair, in the order of the target.

        Args:
            rows: float32 `[target tokens, source tokens]`: the weighted mean of the preset's heads, for the preset's
                row, with special tokens as the preset says.
            source: The source, with its special tokens.
            target: The target. The rows of its special tokens have no part.
            encoder_states: What `compare_states` says of the words; None only without this feature.
        """
        return self.decide(self.score(rows, source, target, encoder_states))

    def score(
        self, rows: Matrix, source: WordedText, target: WordedText, encoder_states: Matrix | None = None
    ) -> WordScores:
        """Returns the scores of all pairs of words. The arguments are those of `link`."""
        return self.score_words(source.sum_rows(rows), source, target.shares, target.folded, encoder_states)

    def decide(self, scores: WordScores) -> list[Link]:
        """Returns the links of a pair of texts whose words have these scores, in the order of the target."""
        return decide_links(scores, self.method, self._threshold)

    def decide_words(self, scores: WordScores) -> list[Link]:
        """Returns the links of some words of a target by argmax or threshold alone: other methods need all words."""
        return decide_links(scores, self._word_method, self._word_threshold)

    def score_words(
        self,
        sums: Matrix,
        source: WordedText,
        target_shares: Matrix,
        target: Sequence[str],
        encoder_states: Matrix | None = None,
    ) -> WordScores:
        """Returns the scores of some folded words of a target, from the sums and the shares of their tokens."""
        if self.has_encoder_states and encoder_states is None:
            raise ValueError("the feature encoder_states needs states")
        if encoder_states is None and len(source.words) * len(target) <= FEW_NUMBERS and kernels.links_words():
            return self._score_few(sums, source, target_shares, target)
        attention = score_words(sums, target_shares, renormalizes=self._renormalizes)
        lexicon = spelling = None
        if self._lexicon is not None:
            lexicon = source.select_lexicon(self._lexicon).score(target)
        if self._compares_spelling:
            spelling = source.spelling.compare(target)
        return combine_features(attention, lexicon, spelling, self._weights, encoder_states)

    def _score_few(self, sums: Matrix, source: WordedText, target_shares: Matrix, target: Sequence[str]) -> WordScores:
        """Does what `score_words` does, by a compiled function."""
        lexicon = None if self._lexicon is None else source.select_lexicon(self._lexicon).rows(target)
        if self._compares_spelling:
            likeness = source.spelling.compare(target)
        else:
            likeness = np.zeros((len(source.words), len(target)), np.float32)
        scores = kernels.score_words(sums, target_shares, likeness, lexicon, self._parameters)
        return WordScores(scores[:-1], scores[-1])
