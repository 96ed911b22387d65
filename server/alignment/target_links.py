"""TargetLinks: links the words of a target that grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..text import Span, Token, WordFinder
from .linker import Linker, WordedText
from .links import Link
from .spelling import fold_word
from .word_scores import Matrix, WordScores, token_shares


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
        self._rows: list[Matrix] = []  # of these tokens, `[tokens, source tokens]` each
        self._num_rows = 0
        # Of all words so far, with the null shares in the last row: kept where all words are decided together.
        self._scores: list[WordScores] = []
        self._links: list[Link] = []

    def add_rows(self, rows: Matrix) -> None:
        """Adds the rows of the tokens that come next, float32 `[tokens, source tokens]`."""
        self._rows.append(rows)
        self._num_rows += len(rows)

    def add_tokens(self, tokens: Sequence[Token], text: str, *, is_last: bool = False) -> list[Link]:
        """Adds tokens, whose rows may come later. Returns the links of words that are now complete and have rows.

        `text` is the text so far. With the last token, all words are complete.
        """
        self._tokens += tokens
        num_known = min(len(self._tokens), self._num_rows)
        if is_last:
            words = self._finder.finish(text)
        else:
            if num_known < len(self._tokens):
                text = text[: self._tokens[num_known - 1].end if num_known else 0]
            words = self._finder.grow(text)
        return self._link(words, text, num_known) if words else []

    def decide(self) -> list[Link]:
        """Returns the links of the whole target, once it has ended, in the order of the target."""
        if not self._scores:  # each word is decided by itself, or there is no word
            return self._links
        if len(self._scores) == 1:
            return self._linker.decide(self._scores[0])
        scores, null = (np.concatenate(parts, axis=-1) for parts in zip(*self._scores, strict=True))
        return self._linker.decide(WordScores(scores, null))

    def _link(self, words: list[Span], text: str, num_known: int) -> list[Link]:
        """Returns the links of words. The first `num_known` tokens have rows."""
        tokens = self._tokens[:num_known]
        if tokens:
            rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
        else:  # as where the target ends at once behind a prefix: these words look nowhere
            begin = words[0][0]
            tokens = [Token(0, "", begin, begin, special=False, text="")]
            rows = np.zeros((1, len(self._source.tokens)), np.float32)
        first, folded = len(self.words), [fold_word(text[begin:end]) for begin, end in words]
        sums = self._source.sum_rows(rows[: len(tokens)])
        scores = self._linker.score_words(sums, self._source, token_shares(text, tokens, words), folded)
        links = [Link(source, first + word, score) for source, word, score in self._linker.decide_words(scores)]
        if self._linker.decides_together:
            self._scores.append(scores)
        else:
            self._links += links
        self.words += words
        if num_known:
            # The last token of a word may have characters of the next word. A token that covers nothing belongs to the
            # next token.
            end = words[-1][1]
            while num_known and not tokens[num_known - 1].begin < tokens[num_known - 1].end <= end:
                num_known -= 1
            del self._tokens[:num_known]
            self._num_rows -= num_known
            # A copy: a view would keep the rows of whole passes in memory.
            self._rows = [rows[num_known:].copy()] if self._num_rows else []
        return links
