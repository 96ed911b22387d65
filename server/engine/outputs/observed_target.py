"""What is made of the rows that observers have of one target: links while it grows, and at its end links and signals.

Knows texts and requests; runs no forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...alignment import Alignment, Link, Linker, Signals, WordedText, compute_signals
from ...capture import AttentionArrays, FloatArray
from ...request import Observer, Request
from ...text import Token


class ObservedTarget:
    """The rows and the tokens of one target, as they come."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._rows: dict[Observer, list[FloatArray]] = {name: [] for name in request.observed}
        self._tokens: list[Token] = []
        self._links = None if request.linker is None else _GrowingLinks(request, request.linker)

    def add_pass(self, observed: Mapping[Observer, AttentionArrays], step: int) -> None:
        """Adds the rows of a decode step, one of each observer. The step's query predicts the token of `step`."""
        for name, rows in observed.items():
            is_late = self._request.observed[name].row == "reading"  # then the row is that of the token before
            if step or not is_late:
                self._rows[name].append(rows.values)

    def add_rows(self, observed: Mapping[Observer, AttentionArrays]) -> None:
        """Adds the rows of the steps of a given target that come next."""
        for name, rows in observed.items():
            self._rows[name].extend(rows.values)

    def add_token(self, token: Token, text: str, *, is_last: bool) -> tuple[Link, ...]:
        """Adds the token of the next step. Returns the links of words that are now complete.

        `text` is the text of the target so far. With the last token, all words are complete.
        """
        self._tokens.append(token)
        if self._links is None:
            return ()
        return self._links.grow(self._tokens, self._rows["links"], text, is_last=is_last)

    def find_signals(self) -> Signals | None:
        """Returns the signals of the whole target; None if the request does not ask for them."""
        rows = self._rows.get("signals")
        if rows is None:
            return None
        stacked = np.stack(rows[: len(self._tokens)])
        return compute_signals(stacked, self._request.source.tokens, self._tokens)

    def find_alignment(self, text: str) -> Alignment | None:
        """Returns the links of the whole target; None if the request does not ask for them."""
        return None if self._links is None else self._links.align(self._tokens, self._rows["links"], text)


class _GrowingLinks:
    """The links of one target that grows."""

    def __init__(self, request: Request, linker: Linker) -> None:
        self._linker = linker
        self._source = WordedText.of_text(request.source.text, request.source.tokens)
        self._following = linker.follow(self._source)
        self._texts: list[str] = []  # the text with each token
        self._num_followed = 0
        self._found: list[Link] = []

    def grow(self, tokens: list[Token], rows: list[FloatArray], text: str, *, is_last: bool) -> tuple[Link, ...]:
        """Returns the links of words that are complete with the last of the tokens. Its row may come later."""
        self._texts.append(text)
        new: list[Link] = []
        for number in range(self._num_followed, min(len(tokens), len(rows))):
            new += self._following.add(tokens[number], rows[number], self._texts[number])
            self._num_followed = number + 1
        if is_last:
            new += self._following.finish(text)
        self._found += new
        return tuple(new)

    def align(self, tokens: list[Token], rows: list[FloatArray], text: str) -> Alignment:
        """Returns the links of the whole target."""
        target = WordedText.of_text(text, tokens)
        links = self._found
        if self._linker.method not in ("argmax", "threshold"):  # all words are decided together
            known = np.stack(rows[: len(tokens)])
            missing = np.zeros((len(tokens) - len(known), known.shape[1]), np.float32)  # of the end token
            links = self._linker.link(np.concatenate([known, missing]), self._source, target)
        return Alignment(self._source.words, target.words, links)


def make_observed_target(request: Request) -> ObservedTarget | None:
    """Returns what takes the observers' rows of a request; None for a request without observers."""
    return ObservedTarget(request) if request.observed else None
