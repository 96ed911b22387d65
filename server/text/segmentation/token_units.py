"""Units: consecutive tokens that belong together, such as the tokens of a word. The text may grow.

These are the rules, the same for a whole text and for a text that grows:

- A special token is a unit of its own.
- With words and sentences, a token belongs to the word or sentence of its first character.
- With given spans, a token belongs to the first span that it shares a character with. A token of no span is a unit of
  its own.
- A token that covers nothing and is not special belongs to the unit of the token after it. Before a special token and
  at the end of the text, such tokens are a unit of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

from ..offsets import Span
from ..tokens import Token
from .words import Segments

Grouping = Literal["token", "word", "sentence", "span"]


class TokenGrouper:
    """Groups the tokens of one text, as they come. A unit is a range of the tokens' numbers.

    A unit is complete when a later token is certain to belong to another unit. Complete units do not change, and they
    are the units of the whole text.

    Attributes:
        num_decided: How many tokens, from the first, are certain to belong to the complete units or to the unit that
            comes next.
    """

    def __init__(self, grouping: Grouping, spans: Sequence[Span] = ()) -> None:
        """`spans` are for the grouping "span": ascending, and without overlaps."""
        self._segments = Segments(grouping) if grouping in ("word", "sentence") else None
        self._spans = spans
        self._undecided: deque[Token] = deque()
        self._begin = 0  # of the unit that comes next
        self._key: int | None = None  # of the unit that comes next
        self.num_decided = 0

    def add(self, token: Token, text: str) -> list[range]:
        """Adds a token. `text` is the text so far. Returns the units that are now complete."""
        self._undecided.append(token)
        if self._segments is not None:
            self._segments.grow(text)
        return self._decide()

    def finish(self, text: str) -> list[range]:
        """Ends the text. Returns the units that were not complete."""
        if self._segments is not None:
            self._segments.finish(text)
        complete = self._decide()
        if self._undecided:  # tokens that cover nothing
            complete += self._join(len(self._undecided), self._own_key)
        return complete + self._close()

    @property
    def _own_key(self) -> int:
        """A key that no other unit has: the keys of segments and spans are not negative."""
        return -1 - self.num_decided

    def _decide(self) -> list[range]:
        """Decides where the next tokens belong, as far as that is certain. Returns the units that are complete."""
        complete: list[range] = []
        while (next_tokens := self._find_next()) is not None:
            complete += self._join(*next_tokens)
        if any(token.begin < token.end for token in self._undecided):
            # A token whose segment is not certain lies behind all certain segments.
            complete += self._close()
        return complete

    def _find_next(self) -> tuple[int, int] | None:
        """Returns how many of the next tokens belong together, and the key of their unit; None if it is not certain."""
        for count, token in enumerate(self._undecided, 1):
            if token.special:
                return max(1, count - 1), self._own_key
            if token.begin < token.end:
                key = self._key_of(token)
                return None if key is None else (count, key)
        return None

    def _key_of(self, token: Token) -> int | None:
        """Returns the key of the unit of a token that covers characters; None if it is not certain."""
        if self._segments is not None:
            return self._segments.index_at(token.begin)
        shared = (index for index, span in enumerate(self._spans) if shares_character(token, span))
        return next(shared, self._own_key)

    def _join(self, count: int, key: int) -> list[range]:
        """Adds the next tokens to the next unit, or begins another unit. Returns the unit that is complete then."""
        complete = [] if key == self._key else self._close()
        self._key = key
        self.num_decided += count
        for _ in range(count):
            self._undecided.popleft()
        return complete

    def _close(self) -> list[range]:
        """Ends the next unit with the tokens that are decided. Returns the unit, if there is one."""
        unit = range(self._begin, self.num_decided)
        self._begin = self.num_decided
        return [unit] if unit else []


def group_tokens(tokens: Sequence[Token], text: str, grouping: Grouping, spans: Sequence[Span] = ()) -> list[range]:
    """Groups the tokens of a whole text."""
    grouper = TokenGrouper(grouping, spans)
    return [unit for token in tokens for unit in grouper.add(token, text)] + grouper.finish(text)


def cover(tokens: Sequence[Token]) -> Span:
    """Returns the part of the text that the tokens of a unit cover. It is empty where the tokens cover nothing."""
    covering = [token for token in tokens if token.begin < token.end]
    if not covering:
        return tokens[0].begin, tokens[0].begin
    return covering[0].begin, max(token.end for token in covering)


def shares_character(token: Token, span: Span) -> bool:
    """Whether a token covers a character of a span."""
    return token.begin < token.end and token.begin < span[1] and span[0] < token.end
