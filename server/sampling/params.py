"""SamplingParams: what one request's logits processors do, as plain numbers."""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class SamplingParams:
    """What is done to the logits of one request, in the order of the fields.

    A length is a number of tokens of the target, its context included.
    """

    repetition_penalty: float = 1.0
    ngram_size: int = 0  # 0: n-grams may be repeated
    bad_words: tuple[int, ...] = ()
    min_length: int = 0  # below this length `end_ids` are banned
    end_ids: tuple[int, ...] = ()
    forced: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])  # by length
    suppressed: tuple[int, ...] = ()
    begin_length: int = 0  # at this length `begin_suppressed` are banned
    begin_suppressed: tuple[int, ...] = ()
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    renormalize: bool = False

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1.0 or self.ngram_size > 0

    def banned_at(self, length: int) -> tuple[int, ...]:
        """The tokens that `suppressed` and `begin_suppressed` ban at a length."""
        return (*self.suppressed, *(self.begin_suppressed if length == self.begin_length else ()))

    @cached_property
    def change_lengths(self) -> list[int]:
        """The lengths at which a ban or a forced token begins or ends, in ascending order."""
        forced = [length for start in self.forced for length in (start, start + 1)]
        begin = [self.begin_length, self.begin_length + 1] if self.begin_suppressed else []
        return sorted([*forced, *begin, *([self.min_length] if self.end_ids else [])])

    def phase(self, length: int) -> tuple[int, int]:
        """Returns the number of the phase that a length is in, and how many tokens are left of the phase.

        Bans and forced tokens are the same at all lengths of a phase.
        """
        index = bisect_right(self.change_lengths, length)
        return index, self.change_lengths[index] - length if index < len(self.change_lengths) else sys.maxsize
