"""What is made of the rows that observers have of one target: links while it grows, and at its end links and signals.

Knows texts and requests; runs no forward pass.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np

from ...alignment import Alignment, Link, Signals, TargetLinks, WordedText, compute_signals
from ...capture import AttentionArrays, FloatArray
from ...request import Observer, Request
from ...text import Token


class ObservedTarget:
    """The rows and the tokens of one target, as they come."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._source: WordedText | None = None
        self._links: TargetLinks | None = None
        if request.linker is not None:
            self._source = WordedText.of_text(request.source.text, request.source.tokens)
            self._links = TargetLinks(request.linker, self._source)
        self._rows: list[FloatArray] = []  # of the observer "signals", `[steps, source tokens]` each
        self._tokens: list[Token] = []

    def add_pass(self, observed: Mapping[Observer, AttentionArrays], step: int) -> None:
        """Adds the rows of a decode step, one of each observer. The step's query predicts the token of `step`."""
        for name, rows in observed.items():
            is_late = self._request.observed[name].row == "reading"  # then the row is that of the token before
            if step or not is_late:
                self._add_rows(name, rows.values[None])

    def add_rows(self, observed: Mapping[Observer, AttentionArrays]) -> None:
        """Adds the rows of the steps of a given target that come next."""
        for name, rows in observed.items():
            self._add_rows(name, rows.values)

    def _add_rows(self, name: Observer, rows: FloatArray) -> None:
        if name == "signals":
            self._rows.append(rows)
        elif self._links is not None:
            self._links.add_rows(rows)

    def add_tokens(self, tokens: Sequence[Token], text: str, *, is_last: bool) -> list[Link]:
        """Adds the tokens of the next steps. Returns the links of words that are now complete.

        `text` is the text of the target so far. With the last token, all words are complete.
        """
        self._tokens += tokens
        return [] if self._links is None else self._links.add_tokens(tokens, text, is_last=is_last)

    def find_signals(self) -> Signals | None:
        """Returns the signals of the whole target; None if the request does not ask for them."""
        if "signals" not in self._request.observed:
            return None
        rows = np.concatenate(self._rows)[: len(self._tokens)]
        return compute_signals(rows, self._request.source.tokens, self._tokens)

    def find_alignment(self) -> Alignment | None:
        """Returns the links of the whole target, which has ended; None if the request does not ask for them."""
        if self._links is None or self._source is None:
            return None
        return Alignment(self._source.words, self._links.words, self._links.decide())

    def place_links(self, links: Sequence[Link], tokens: Sequence[Token]) -> list[list[Link]]:
        """Returns the links of each of the last tokens: a link comes with the last token of its target word."""
        placed: list[list[Link]] = [[] for _ in tokens]
        begins = [token.begin for token in tokens]
        for link in links:
            assert self._links is not None
            last = bisect_left(begins, self._links.words[link.target][1]) - 1
            placed[max(0, last)].append(link)
        return placed


def make_observed_target(request: Request) -> ObservedTarget | None:
    """Returns what takes the observers' rows of a request; None for a request without observers."""
    return ObservedTarget(request) if request.observed else None
