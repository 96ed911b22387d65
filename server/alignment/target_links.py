"""TargetLinks: links the words of a target that grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..text import Span, Token, WordFinder
from .linker import Linker, WordedText
from .links import Link
from .spelling import fold_word
from .word_scores import Matrix, WordScores, token_shares, word_shares

# Up to so many numbers, words are scored one by one: to make a matrix of them takes longer.
_FEW_NUMBERS = 64


class TargetLinks:
    """The links of one target that grows, word by word. The links of complete words do not change.

    A word is complete where no further text can move its end.

    Attributes:
        words: The words that are complete and have links, or none.
    """

    def __init__(self, linker: Linker, source: WordedText) -> None:
        if linker.has_encoder_states:
            raise ValueError("the encoder has no states of a target that grows")
        self.words: list[Span] = []
        self._linker = linker
        self._source = source
        self._finder = WordFinder()
        self._tokens: list[Token] = []  # the tokens of a word that is not complete
        self._sums: list[list[float]] = []  # what the rows of these tokens give to the words of the source
        self._scores: list[list[float]] = []  # of each word, with the null share at the end
        self._links: list[Link] = []

    def add_rows(self, rows: Matrix) -> None:
        """Adds the rows of the tokens that come next, float32 `[tokens, source tokens]`."""
        self._sums += self._source.sum_rows(rows).tolist()

    def add_tokens(self, tokens: Sequence[Token], text: str, *, is_last: bool = False) -> list[Link]:
        """Adds tokens, whose rows may come later. Returns the links of words that are now complete and have rows.

        `text` is the text so far. With the last token, all words are complete.
        """
        self._tokens += tokens
        num_known = min(len(self._tokens), len(self._sums))
        if is_last:
            words = self._finder.finish(text)
        else:
            if num_known < len(self._tokens):
                text = text[: self._tokens[num_known - 1].end if num_known else 0]
            words = self._finder.grow(text)
        return self._link(words, text, num_known) if words else []

    def decide(self) -> list[Link]:
        """Returns the links of the whole target, once it has ended, in the order of the target."""
        if self._linker.method in ("argmax", "threshold") or not self._scores:  # each word is decided by itself
            return self._links
        scores = np.array(self._scores, np.float32).T
        return self._linker.decide(WordScores(scores[:-1], scores[-1]))

    def _link(self, words: list[Span], text: str, num_known: int) -> list[Link]:
        """Returns the links of words. The first `num_known` tokens have rows."""
        tokens, sums = self._tokens[:num_known], self._sums[:num_known]
        if not tokens:  # as where the target ends at once behind a prefix: these words look nowhere
            begin = words[0][0]
            tokens, sums = [Token(0, "", begin, begin, special=False, text="")], [[0.0] * (len(self._source.words) + 2)]
        size = len(words) * (len(self._source.words) + num_known)
        link = self._link_each if size <= _FEW_NUMBERS else self._link_together
        links = link(words, tokens, sums, text)
        self._links += links
        self.words += words
        # The last token of a word may have characters of the next word. A token that covers nothing belongs to the next
        # token.
        end = words[-1][1]
        while num_known and not tokens[num_known - 1].begin < tokens[num_known - 1].end <= end:
            num_known -= 1
        del self._tokens[:num_known], self._sums[:num_known]
        return links

    def _link_each(self, words: list[Span], tokens: list[Token], sums: list[list[float]], text: str) -> list[Link]:
        links: list[Link] = []
        for begin, end in words:
            shares = word_shares(text, tokens, (begin, end))
            found, scores = self._linker.link_word(sums, self._source, shares, text[begin:end], len(self._scores))
            links += found
            self._scores.append(scores)
        return links

    def _link_together(self, words: list[Span], tokens: list[Token], sums: list[list[float]], text: str) -> list[Link]:
        first, folded = len(self._scores), [fold_word(text[begin:end]) for begin, end in words]
        shares, numbers = token_shares(text, tokens, words), np.array(sums, np.float32)
        scores = self._linker.score_words(numbers, self._source, shares, folded)
        self._scores += np.concatenate((scores.scores, scores.null[None])).T.tolist()
        return [Link(source, first + word, score) for source, word, score in self._linker.decide_words(scores)]
