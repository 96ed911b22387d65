"""BeamSearch: which hypotheses of one request go on, and which have ended, as transformers' `generate` decides it.

A step takes the likeliest continuations of all running hypotheses together, the candidates. A candidate that ends may
become a result; the others are the next running hypotheses. The arithmetic is float32, as in `generate`: a tie or a
near tie is decided alike. The search runs on the host, on a few numbers; `find_candidates` runs on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..request import BeamParams, StopReason
from ..transfer import int_tensor, to_device

# What `generate` takes for minus infinity: the score of hypotheses that are not there.
_ABSENT = np.float32(-1e9)

# Below this sum of log-probabilities, a hypothesis is a copy of another one, to which `generate` gave `_ABSENT` at the
# start. Copies last only where fewer tokens are allowed than hypotheses are kept.
_COPY = _ABSENT / 2


class FoundHypothesis(NamedTuple):
    """A hypothesis that has ended: its new tokens, and its score, divided by length ** length_penalty."""

    ids: tuple[int, ...]
    score: float
    stop_reason: StopReason
    is_copy: bool


class BeamChoice(NamedTuple):
    """The hypotheses that go on, the best first: each a former hypothesis, by its rank, with one more token."""

    parents: list[int]
    tokens: list[int]


class BeamSearch:
    """The search of one request, step after step: `find_candidates`, then `advance`, until `is_done`.

    Attributes:
        scores: The sums of log-probabilities of the running hypotheses, float32 `[width]`, the best first.
        running: The new tokens of the running hypotheses, in the same order.
        is_done: Whether the search has ended.
    """

    def __init__(
        self,
        params: BeamParams,
        max_new_tokens: int,
        end_ids: frozenset[int],
        has_stop_text: Callable[[tuple[int, ...]], bool] | None = None,
        *,
        forces_end: bool = False,
    ) -> None:
        """`has_stop_text` says whether new tokens contain a text that ends a hypothesis; None: there are no such texts.

        `end_ids` are the tokens that end a hypothesis; empty if none does. `forces_end` says that the last of
        `max_new_tokens` is one of them whatever the model wants.
        """
        self._params = params
        self._max_new_tokens = max_new_tokens
        self._end_ids = end_ids
        self._has_stop_text = has_stop_text
        self._forces_end = forces_end
        self._ended: list[FoundHypothesis] = []  # the best first, at most `width`
        self.scores: NDArray[np.float32] = np.full(params.width, _ABSENT)
        self.scores[0] = 0  # at the start all hypotheses are equal, and only one counts
        self.running: list[tuple[int, ...]] = [()] * params.width
        self.is_done = False

    @property
    def width(self) -> int:
        """How many hypotheses run at the same time."""
        return self._params.width

    @property
    def num_candidates(self) -> int:
        """How many continuations a step looks at: enough to go on where all of the best ones end."""
        return max(2, 1 + len(self._end_ids)) * self.width

    @property
    def found(self) -> list[FoundHypothesis]:
        """The best hypotheses that have ended, as many as are asked for or fewer, the best first."""
        distinct = [hypothesis for hypothesis in self._ended if not hypothesis.is_copy]
        return distinct[: self._params.num_hypotheses]

    def advance(self, values: NDArray[np.float32], indices: NDArray[np.int64], vocabulary: int) -> BeamChoice:
        """Takes the candidates of a step, the best first, and returns the hypotheses that go on.

        Args:
            values: The sums of log-probabilities, float32 `[num_candidates]`, none of them NaN.
            indices: Which continuation each is: rank of the hypothesis * vocabulary + token.
            vocabulary: How many tokens a hypothesis can go on with.
        """
        ranks, ids = (indices // vocabulary).tolist(), (indices % vocabulary).tolist()
        length = len(self.running[0]) + 1
        reasons: list[StopReason | None] = [
            self._stop_reason(rank, id_, length) for rank, id_ in zip(ranks, ids, strict=True)
        ]
        self._keep_ended(values, ranks, ids, reasons, self._length_factor(length))
        has_ended = np.array([reason is not None for reason in reasons])
        running = values + has_ended.astype(np.float32) * _ABSENT
        best = np.argsort(-running, kind="stable")[: self.width].tolist()
        choice = BeamChoice([ranks[index] for index in best], [ids[index] for index in best])
        self.scores = running[best]
        self.running = [(*self.running[rank], id_) for rank, id_ in zip(*choice, strict=True)]
        is_full = len(self._ended) == self.width
        self.is_done = (
            not self._may_improve(length)
            or (is_full and self._params.early_stopping == "first")
            or bool(has_ended.all())
        )
        return choice

    def _stop_reason(self, rank: int, id_: int, length: int) -> StopReason | None:
        is_last = length >= self._max_new_tokens
        if id_ in self._end_ids:
            return "length" if is_last and self._forces_end else "end_token"
        if self._has_stop_text is not None and self._has_stop_text((*self.running[rank], id_)):
            return "stop_text"
        return "length" if is_last else None

    def _keep_ended(
        self,
        values: NDArray[np.float32],
        ranks: list[int],
        ids: list[int],
        reasons: Sequence[StopReason | None],
        length_factor: np.float32,
    ) -> None:
        """Keeps candidates that have ended, if they are among the best of all that have ended."""
        # The candidates beyond the width are there to go on with, not to end.
        for index in range(self.width):
            reason = reasons[index]
            if reason is not None:
                tokens = (*self.running[ranks[index]], ids[index])
                score = float(values[index] / length_factor)
                self._ended.append(FoundHypothesis(tokens, score, reason, bool(values[index] < _COPY)))
        self._ended.sort(key=lambda hypothesis: -hypothesis.score)  # of equal ones, the earlier stays before the later
        del self._ended[self.width :]

    def _may_improve(self, length: int) -> bool:
        """Whether a running hypothesis may become better than the worst that has ended."""
        if self._params.early_stopping == "never" and self._params.length_penalty > 0:
            length = self._max_new_tokens  # at which the score would be best
        best = self.scores[0] / self._length_factor(length)
        worst = self._ended[-1].score if len(self._ended) == self.width else _ABSENT
        return bool(best > worst)

    def _length_factor(self, length: int) -> np.float32:
        return np.float32(np.float64(length) ** self._params.length_penalty)


class Candidates(NamedTuple):
    """The candidates of searches, on the device, the best first: as `BeamSearch.advance` takes them."""

    searches: list[BeamSearch]
    values: Tensor  # float32 [searches, num_candidates]
    indices: Tensor  # int64 [searches, num_candidates]


def find_candidates(searches: Sequence[BeamSearch], log_probs: Tensor, counts: Sequence[int]) -> list[Candidates]:
    """Finds the candidates of searches. Searches of equal width are looked at together. Does not wait for the device.

    Args:
        searches: The searches.
        log_probs: Float32 `[rows, vocabulary]`: the rows of the first search's running hypotheses, in their order, then
            those of the next.
        counts: How many rows each search has: its width; or 1 before its first step, when all its hypotheses are equal.
    """
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (search, count) in enumerate(zip(searches, counts, strict=True)):
        groups.setdefault((search.width, search.num_candidates, count), []).append(index)
    starts = np.cumsum([0, *counts]).tolist()
    found: list[Candidates] = []
    for (width, num_candidates, count), members in groups.items():
        rows = log_probs
        if len(groups) > 1:
            selected = [row for index in members for row in range(starts[index], starts[index] + count)]
            rows = log_probs.index_select(0, int_tensor(selected, log_probs.device))
        group = [searches[index] for index in members]
        sums = to_device(np.stack([search.scores for search in group]), log_probs.device)
        sums = (rows.view(len(group), count, -1) + sums.view(len(group), width, 1)).flatten(1)
        values, indices = sums.topk(min(num_candidates, sums.shape[1]))
        found.append(Candidates(group, values, indices))
    return found
