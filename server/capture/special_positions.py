"""Which positions of a sequence hold special tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .context import AttentionKind


class SpecialPositions:
    """The special tokens of one sequence, for each kind of attention. Padding of a batch is none of its positions."""

    def __init__(
        self,
        is_special: Callable[[int], bool],
        source: Sequence[int],
        source_length: int,
        target: Sequence[int],
        max_target: int,
    ) -> None:
        """`target` are the tokens that the decoder reads before the first chosen one, of at most `max_target`.

        The `source_length` positions of a recording have no tokens, and are not special.
        """
        self._is_special = is_special
        self._source = np.zeros(source_length, np.bool_)
        self._source[: len(source)] = [is_special(id_) for id_ in source]
        self._target = np.zeros(max_target, np.bool_)
        self._num_target = 0
        for id_ in target:
            self.add(id_)

    def add(self, token: int) -> None:
        """Adds the next token of the target."""
        if self._num_target < len(self._target):  # the token after the last one is chosen, and never read
            self._target[self._num_target] = self._is_special(token)
            self._num_target += 1

    def mask(self, kind: AttentionKind) -> NDArray[np.bool_]:
        """Returns whether a position is special, bool `[positions]`; of a decoder also positions that are still empty.

        The array is a view: it must not be changed.
        """
        return self._target if kind == "decoder_self" else self._source

    def masks(self, positions: Mapping[AttentionKind, int], device: torch.device) -> dict[AttentionKind, Tensor]:
        """Returns the masks of a pass over this sequence alone, bool `[1, positions]`, by kind."""
        return {
            kind: torch.from_numpy(self.mask(kind)[:count].copy())[None].to(device) for kind, count in positions.items()
        }

    @property
    def host_masks(self) -> dict[AttentionKind, Tensor]:
        """The masks on the host, bool `[positions]`, by kind."""
        kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self", "encoder_self")
        return {kind: torch.from_numpy(self.mask(kind)) for kind in kinds}
