"""ScreenedHead: the largest logit of each row, found without reading all float32 weights. On a CPU.

An int8 copy of the weights gives an estimate of each logit, for a quarter of the memory traffic. Error bounds say which
tokens may have the largest logit after all; only the logits of these tokens are computed from the float32 weights. The
result is exact: the token that is found has the largest logit, not only probably. A compiled program does the search
(see `kernels.cpu.argmax`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.cpu import ErrorBounds, LinearArgmax, is_supported, pack_weight
from .packed_linear import quantize

# What rounding adds to the bounds, as a share of what is rounded: some float32 epsilons.
_ROUNDING = 1e-6
# The numbers of rows to measure. A number in between runs as the next measured one, a larger one as the last.
_MEASURED_ROWS = (1, 2, 4, 8, 16, 32, 64)
_REPEATS = 4
# The screened search is used where it takes less than this share of the time of the other way.
_MAX_TIME_SHARE = 0.9
# Rows of weights whose norms are computed together.
_CHUNK_ROWS = 8192


class ScreenedHead:
    """An int8 copy of an output projection's weights, and how far the copy's logits may be from the true logits.

    For a weight w, its copy v, a hidden state h and its int8 copy g: w·h - v·g = v·(h - g) + (w - v)·h. By Cauchy and
    Schwarz the difference is at most |v| |h - g| + |w - v| |h|. Owned by an LMHead.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, other: Callable[[Tensor], object]) -> None:
        """Makes the copy, and measures for which numbers of rows the screened search is faster than `other`.

        `weight` is float32 `[vocabulary, width]`, kept and not copied; `bias`, `[vocabulary]`, is added to logits.
        `other` finds the largest logits of hidden states `[n, width]` in the way that would be used instead. Raises
        RuntimeError where weights are not finite, or programs with int8 weights do not run on this machine.
        """
        if not is_supported(int8=True):
            raise RuntimeError("programs with int8 weights do not run on this machine")
        norms, errors = (torch.cat(parts) for parts in zip(*map(_norms, weight.split(_CHUNK_ROWS)), strict=True))
        if not bool(torch.isfinite(norms.max() + errors.max())):
            raise RuntimeError("weights that are not finite")
        panels = pack_weight(*quantize(weight), bias)
        slack = _ROUNDING * (0 if bias is None else float(bias.abs().max()))
        self.search = LinearArgmax(panels, ErrorBounds(weight.contiguous(), bias, norms, errors, slack, _ROUNDING))
        self._is_faster = _measure_faster(self.search, other, weight.shape[1])  # by the number of rows

    def is_faster(self, num_rows: int) -> bool:
        """Whether the screened search takes less time for so many rows than the other way."""
        return self._is_faster[min(num_rows, len(self._is_faster) - 1)]

    @property
    def is_ever_faster(self) -> bool:
        """Whether the screened search takes less time for any number of rows."""
        return any(self._is_faster)


def _norms(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns for each row the norm of its int8 copy, and the norm of the difference between the two."""
    quantized, scale = quantize(weight)
    copy = quantized.float().mul_(scale[:, None])
    error = torch.linalg.vector_norm(weight - copy, dim=1)
    # The scale is rounded too, and so is the copy.
    return torch.linalg.vector_norm(copy, dim=1), error + _ROUNDING * torch.linalg.vector_norm(weight, dim=1)


def _measure_faster(search: Callable[[Tensor], object], other: Callable[[Tensor], object], width: int) -> list[bool]:
    """Says for which numbers of rows `search` is faster than `other`: by that number, the last for all larger ones."""
    generator = torch.Generator().manual_seed(0)
    is_faster: list[bool] = []
    for num_rows in _MEASURED_ROWS:
        hidden = torch.randn(num_rows, width, generator=generator)
        times: tuple[list[float], list[float]] = [], []
        for _ in range(_REPEATS):  # in turns, so that both meet the same machine
            start = time.perf_counter()
            other(hidden)
            between = time.perf_counter()
            search(hidden)
            times[0].append(between - start)
            times[1].append(time.perf_counter() - between)
        is_faster += [min(times[1]) < _MAX_TIME_SHARE * min(times[0])] * (num_rows + 1 - len(is_faster))
    return is_faster
