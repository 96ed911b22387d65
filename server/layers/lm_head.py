"""The last layer of a model, apart from the rest: from what it has made of a position to the scores of all tokens.

A forward pass can leave this layer out, so that whoever has taken the pass asks for what it needs: no scores while a
prompt is read, all of them where somebody looks at them, and else only the greatest of each row (see `screened_head`).
Knows models; knows nothing of requests or slots.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...kernels.cpu import LinearArgmax, MaskedColumns, mask_columns
from .packed_linear import PackedLinear
from .screened_head import Estimates, ScreenedHead

log = logging.getLogger(__name__)


class ArgmaxQuery(NamedTuple):
    """The greatest score of each row, about to be found without writing all."""

    search: LinearArgmax
    excluded: MaskedColumns


class LMHead:
    """The scores of all tokens, from what a model's last layer is given."""

    def __init__(self, layer: nn.Module, bias: Tensor | None = None) -> None:
        """`bias`, `[vocabulary]`, is what the model adds to what the layer makes."""
        self._layer = layer
        self._bias = bias
        self._screen: ScreenedHead | None = None
        self._search: LinearArgmax | None = None  # among the layer's own scores
        self._excluded: tuple[Tensor, int, MaskedColumns] | None = None  # the last, and as a search has them
        self._is_held = False
        self._hidden: Tensor | None = None
        self._hook = layer.register_forward_pre_hook(self._hold)

    def _hold(self, _layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._is_held:
            return None
        self._hidden = given[0]
        return (given[0][:0],)  # so that what comes after the layer has nothing to do either

    def detach(self) -> None:
        """Leaves the model as it was."""
        self._hook.remove()

    def screen(self, weight: Tensor) -> None:
        """Has the greatest scores found by estimates, where that takes less time. `weight` is the layer's, unpacked."""
        bias = getattr(self._layer, "bias", None)
        if self._bias is not None:
            bias = self._bias if bias is None else bias + self._bias
        try:
            screen = ScreenedHead(weight, bias, self.logits, self._search)
        except RuntimeError as error:  # such as no exact int8 kernel on this machine
            log.info("all scores are computed in full: %s", error)
            return
        self._screen = screen if screen.is_ever_worth else None  # without it, its copy goes

    def search(self) -> None:
        """Has the greatest scores found without writing all, where the layer is in panels."""
        panels = self._layer.panels if isinstance(self._layer, PackedLinear) else None
        if panels is None:
            return
        if self._bias is not None:
            more = torch.nn.functional.pad(self._bias.float(), (0, len(panels.bias) - panels.out_features))
            panels = panels._replace(bias=panels.bias + more)
        self._search = LinearArgmax(panels)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Leaves the layer out of the forward passes within: their logits have no rows. `pop_hidden` has its input."""
        self._is_held, self._hidden = True, None
        try:
            yield
        finally:
            self._is_held = False

    def pop_hidden(self) -> Tensor:
        """What the layer would have been given in the last pass that was held, `[B, T, width]`."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """The scores of all tokens, `[n, vocabulary]`, from `[n, width]`."""
        logits = self._layer(hidden)
        return logits if self._bias is None else logits + self._bias

    def argmax_query(self, rows: int, excluded: Tensor, first: int) -> ArgmaxQuery | None:
        """How the greatest scores of so many rows are found; None where scores must be written to be searched.

        Scores that are `excluded`, int64 `[m]`, are no row's: each is a row, from `first` on, times the size
        of the vocabulary, and a token.
        """
        search, screen = self._search, self._screen
        if screen is not None and screen.is_worth(rows, searching=True):
            search = screen.search or search
        if search is None:
            return None
        if self._excluded is None or self._excluded[0] is not excluded or self._excluded[1] != first:
            size = search.out_features
            made = mask_columns(excluded // size - first, excluded % size, size)
            self._excluded = excluded, first, made
        return ArgmaxQuery(search, self._excluded[2])

    def estimates(self, hidden: Tensor) -> Estimates | None:
        """What the greatest scores are found by, from `[n, width]`; None where all scores take no longer."""
        if self._screen is None or not self._screen.is_worth(len(hidden)):
            return None
        return self._screen.estimate(hidden)


def shared_weight(model: PreTrainedModel) -> Tensor | None:
    """The last layer's weight `[vocabulary, width]` where it is the input embedding's too; None where it is its own."""
    last, first = (
        getattr(layer, "weight", None) for layer in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if not (isinstance(last, Tensor) and isinstance(first, Tensor)):
        return None
    return first.detach() if last.data_ptr() == first.data_ptr() and last.shape == first.shape else None


def find_lm_head(model: PreTrainedModel) -> LMHead | None:
    """The output projection of a model, with the bias that the model adds to its logits; None if there is none.

    A model may do more to its logits. `models.backend_selection` verifies that the logits are the model's own.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        return None
    bias: Any = getattr(model, "final_logits_bias", None)
    return LMHead(layer, bias[0] if bias is not None and bool(bias.any()) else None)
