"""Finds the greatest score of each row without reading all weights of a last layer in full: on a CPU, in float32.

A copy of the weights in int8 gives estimates of all scores, for a quarter of the memory that is read. Bounds say which
tokens may have the greatest score after all; their scores alone are computed from the weights themselves. What is found
is the greatest, not only likely so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...kernels.cpu import ErrorBounds, LinearArgmax
from .packed_linear import pack, quantize

log = logging.getLogger(__name__)

# The most candidates of a row whose weights are gathered. A row with more is scored in full.
_MANY = 1024
# What rounding adds to the bounds, as a share of what is rounded: some float32 epsilons.
_ROUNDING = 1e-6
# The numbers of rows to measure. Those in between do as the next, those above as the last.
_MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64)
_REPEATS = 4
# The share of the time of all scores in full below which estimates are used.
_WORTH_IT = 0.9
# Rows of weights that are looked at together.
_PART = 8192


def greatest(scores: Tensor) -> Tensor:
    """The place of the greatest number of each row, int64 `[n]`; of one that is none, where one is."""
    # To look at numbers is not to wait on a CPU, and NumPy, which knows no bfloat16, takes a tenth of the time.
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


class ScreenedHead:
    """The weights of a last layer, a copy of them in int8, and how far apart the two may be.

    With a weight w, its copy v, what the layer is given h, and that in int8, g: w·h - v·g = v·(h - g) + (w - v)·h. By
    Cauchy and Schwarz that is |v| |h - g| + |w - v| |h| at most.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        full: Callable[[Tensor], Tensor],
        rival: Callable[[Tensor], object] | None = None,
    ) -> None:
        """`weight` is float32 `[vocabulary, width]`, kept and not copied; `bias`, `[vocabulary]`, is added to scores.

        `full` gives all scores, `[n, vocabulary]`, of `[n, width]`; `rival` finds the greatest of each row without
        writing them, where there is something that does. Raises RuntimeError where weights are not finite, or this
        machine has no exact int8 kernel.
        """
        self._weight = weight
        self._bias = bias
        self._full = full
        norms, errors = zip(*(_norms(part) for part in weight.split(_PART)), strict=True)
        self._norm = torch.cat(norms).numpy()
        self._error = torch.cat(errors).numpy()
        self._most_norm, self._most_error = self._norm.max(), self._error.max()
        if not np.isfinite(self._most_norm + self._most_error):
            raise RuntimeError("weights that are not finite")
        self._slack = np.float32(_ROUNDING * (0 if bias is None else float(bias.abs().max())))
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        self._estimates = nn.Sequential(layer)
        log.debug("%s", pack(self._estimates, "int8", _MEASURED_ROWS, in_panels=lambda _: True))
        panels = getattr(self._estimates[0], "panels", None)
        # Finds the greatest without writing estimates; None where no programs run.
        self.search: LinearArgmax | None = None
        if panels is not None:
            norm, error = torch.from_numpy(self._norm), torch.from_numpy(self._error)
            bounds = ErrorBounds(weight.contiguous(), bias, norm, error, float(self._slack), _ROUNDING)
            self.search = LinearArgmax(panels, bounds)
        width = weight.shape[1]
        self._worth = _find_worth(self._look, lambda hidden: greatest(full(hidden)), width)
        self._worth_searching = [False]
        if self.search is not None:
            rival = rival or (lambda hidden: greatest(full(hidden)))
            self._worth_searching = _find_worth(self.search, rival, width)

    def is_worth(self, rows: int, *, searching: bool = False) -> bool:
        """Whether for so many rows it takes less time than all scores in full; `searching`, when none are written."""
        worth = self._worth_searching if searching else self._worth
        return worth[min(rows, len(worth) - 1)]

    @property
    def is_ever_worth(self) -> bool:
        """Whether for any number of rows it takes less time than all scores in full."""
        return any(self._worth) or any(self._worth_searching)

    def _look(self, hidden: Tensor) -> Tensor:
        estimates = self.estimate(hidden)
        return estimates.greatest(estimates.scores)

    def estimate(self, hidden: Tensor) -> Estimates:
        """Estimates of all scores, from what the layer is given: float32 `[n, width]`."""
        return Estimates(self, self._estimates(hidden), hidden)

    def _margins(self, hidden: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of each row, `[n]`: how far it is from what the copy is given, |h - g|, and |h|."""
        scale = hidden.abs().amax(-1, True).mul_(1 / 127)
        given = (hidden / scale).round_().mul_(scale).nan_to_num_()  # a row of zeros is what it was
        size = torch.linalg.vector_norm(hidden, dim=-1).numpy()
        return torch.linalg.vector_norm(given.sub_(hidden), dim=-1).numpy() + _ROUNDING * size, size

    def greatest(self, estimates: NDArray[np.float32], hidden: Tensor) -> Tensor:
        """The token with the greatest score of each row, int64 `[n]`; where one is no number, some token that has none.

        `estimates` are those of `[n, width]`. One that is minus infinity stands for a score that is, too.
        """
        with np.errstate(invalid="ignore"):  # where numbers are none
            return self._greatest(estimates, hidden)

    def _greatest(self, estimates: NDArray[np.float32], hidden: Tensor) -> Tensor:
        rows, tokens = np.arange(len(estimates)), estimates.argmax(-1)
        off, size = self._margins(hidden)
        best = estimates[rows, tokens]
        # No score that may be the greatest is below this.
        least = best - (self._norm[tokens] * off + self._error[tokens] * size + self._slack)
        least[best == -np.inf] = np.inf  # none is above another
        reach = self._most_norm * off + self._most_error * size + self._slack
        # Where a number is none, no comparison is true.
        row, token = np.divmod(np.flatnonzero(estimates >= (least - reach)[:, None]), estimates.shape[1])
        most = estimates[row, token] + (self._norm[token] * off[row] + self._error[token] * size[row] + self._slack)
        is_candidate = (most >= least[row]) & (estimates[row, token] > -np.inf)
        row, token = (which[is_candidate] for which in (row, token))
        crowded = np.flatnonzero(np.bincount(row, minlength=len(rows)) > _MANY)
        if len(crowded):
            scores = self._full(hidden[torch.from_numpy(crowded)]).numpy()
            tokens[crowded] = np.where(estimates[crowded] == -np.inf, -np.inf, scores).argmax(-1)
            row, token = (which[~np.isin(row, crowded)] for which in (row, token))
        if len(row):
            self._decide(row, token, hidden, tokens)
        return torch.from_numpy(tokens)

    def _decide(
        self, row: NDArray[np.int64], token: NDArray[np.int64], hidden: Tensor, tokens: NDArray[np.int64]
    ) -> None:
        """Writes to `tokens`, `[n]`, which candidates are the greatest: those in order of rows, then of tokens."""
        candidates = torch.from_numpy(token)
        weights = self._weight.index_select(0, candidates)
        scores = weights.mul_(hidden.index_select(0, torch.from_numpy(row))).sum(-1)
        if self._bias is not None:
            scores += self._bias.index_select(0, candidates)
        first = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.maximum.reduceat(scores.numpy(), first)
        # Of equal ones the first, as argmax has it.
        of_best = np.where(
            scores.numpy() == np.repeat(best, np.diff(first, append=len(row))), token, len(self._weight) - 1
        )
        tokens[row[first]] = np.minimum.reduceat(of_best, first)


class Estimates(NamedTuple):
    """What stands for the scores of all tokens where only the greatest are asked for."""

    screen: ScreenedHead
    scores: Tensor  # float32 [n, vocabulary]
    hidden: Tensor  # [n, width]

    def greatest(self, scores: Tensor) -> Tensor:
        """The token with the greatest score of each row, int64 `[m]`.

        `scores` are the estimates, of which some may have become minus infinity, below rows that mean nothing.
        """
        before = len(scores) - len(self.hidden)
        tokens = self.screen.greatest(scores[before:].numpy(), self.hidden)
        return torch.cat([tokens.new_zeros(before), tokens]) if before else tokens


def _norms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: the length of its copy in int8, and of what is between the two."""
    quantized, scale = quantize(weight)
    copy = quantized.float().mul_(scale[:, None])
    error = torch.linalg.vector_norm(weight - copy, dim=1)
    # The scale is rounded too, and with it the copy.
    return torch.linalg.vector_norm(copy, dim=1), error + _ROUNDING * torch.linalg.vector_norm(weight, dim=1)


def _find_worth(ours: Callable[[Tensor], object], theirs: Callable[[Tensor], object], width: int) -> list[bool]:
    """For which numbers of rows one way is worth it: by that number, the last for all greater ones."""
    generator = torch.Generator().manual_seed(0)
    worth: list[bool] = []
    for rows in _MEASURED_ROWS:
        hidden = torch.randn(rows, width, generator=generator)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(_REPEATS):  # in turns, so that both meet the same machine
            start = time.perf_counter()
            theirs(hidden)
            between = time.perf_counter()
            ours(hidden)
            times[0].append(between - start)
            times[1].append(time.perf_counter() - between)
        worth += [min(times[1]) < _WORTH_IT * min(times[0])] * (rows + 1 - len(worth))
    return worth
