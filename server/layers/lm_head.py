"""LMHead: the output projection of a model, apart from the rest of the model.

A forward pass can skip this layer. The caller of the pass then asks for what it needs: no logits while a prompt is
read, all logits where a request looks at them, and else only the largest logit of each row (see `screened_head`). This
module knows models; it knows nothing of requests or slots.
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
from .screened_head import ScreenedHead

log = logging.getLogger(__name__)


class ArgmaxQuery(NamedTuple):
    """How a forward pass finds the largest logit of each row without writing all logits."""

    search: LinearArgmax
    masked: MaskedColumns  # the logits that no row may choose
    first_row: int  # the number of the pass's first row, as banned tokens count rows
    num_rows: int

    def found(self) -> tuple[Tensor, Tensor]:
        """Returns the token of each row, int64 `[n]`, and its logit, float32 `[n]`, once the search has run.

        The logit may be an estimate; it is NaN where any logit of the row is. The next search overwrites both tensors.
        """
        return self.search.results(self.num_rows)


class LMHead:
    """The logits of all tokens, from the hidden states that a model gives its output projection.

    Owned by a backend, for one thread.
    """

    def __init__(self, layer: nn.Module, bias: Tensor | None = None) -> None:
        """`bias`, `[vocabulary]`, is what the model adds to the output of the layer."""
        self._layer = layer
        self._bias = bias
        self._screened: ScreenedHead | None = None
        self._search: LinearArgmax | None = None  # over the layer's own weights
        self._masked: tuple[Tensor, int, MaskedColumns] | None = None  # the last banned tokens, and their masks
        self._is_skipping = False
        self._hidden: Tensor | None = None
        self._hook = layer.register_forward_pre_hook(self._intercept)

    def _intercept(self, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self._is_skipping:
            return None
        self._hidden = inputs[0]
        return (inputs[0][:0],)  # no rows, so that nothing after the layer has work to do either

    def detach(self) -> None:
        """Removes the hook: the model is as it was before."""
        self._hook.remove()

    def enable_search(self) -> None:
        """Finds argmaxes without writing logits, where the layer's weights are packed for programs."""
        panels = self._layer.panels if isinstance(self._layer, PackedLinear) else None
        if panels is None:
            return
        if self._bias is not None:
            padded_bias = torch.nn.functional.pad(self._bias.float(), (0, len(panels.bias) - panels.out_features))
            panels = panels._replace(bias=panels.bias + padded_bias)
        self._search = LinearArgmax(panels)

    def enable_screening(self, weight: Tensor) -> None:
        """Finds argmaxes by an int8 copy of the weights, where that takes less time.

        `weight` is the layer's weight before packing, `[vocabulary, width]`.
        """
        bias = getattr(self._layer, "bias", None)
        if self._bias is not None:
            bias = self._bias if bias is None else bias + self._bias
        try:
            screened = ScreenedHead(weight, bias, self._search or self._argmax)
        except RuntimeError as error:  # such as no compiled search on this machine
            log.info("all logits are computed in full: %s", error)
            return
        self._screened = screened if screened.is_ever_faster else None  # an unused copy is freed

    def _argmax(self, hidden: Tensor) -> Tensor:
        return self.logits(hidden).argmax(-1)

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Skips the layer in the forward passes within: their logits have no rows. `pop_hidden` returns its input."""
        self._is_skipping, self._hidden = True, None
        try:
            yield
        finally:
            self._is_skipping = False

    def pop_hidden(self) -> Tensor:
        """Returns the hidden states that the last skipping pass gave the layer, `[B, T, width]`."""
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns the logits of all tokens, `[n, vocabulary]`, from hidden states `[n, width]`."""
        logits = self._layer(hidden)
        return logits if self._bias is None else logits + self._bias

    def argmax_query(self, num_rows: int, banned: Tensor, first_row: int) -> ArgmaxQuery | None:
        """Returns how the largest logits of so many rows are found; None where logits must be written.

        `banned`, int64 `[m]`, are flat indices, row * vocabulary + token, of logits that no row may choose. They count
        rows such that the pass's first row is `first_row`.
        """
        search, screened = self._search, self._screened
        if screened is not None and screened.is_faster(num_rows):
            search = screened.search
        if search is None:
            return None
        if self._masked is None or self._masked[0] is not banned or self._masked[1] != first_row:
            size = search.out_features
            masked = mask_columns(banned // size - first_row, banned % size, size)
            self._masked = banned, first_row, masked
        return ArgmaxQuery(search, self._masked[2], first_row, num_rows)


def shared_weight(model: PreTrainedModel) -> Tensor | None:
    """Returns the output projection's weight `[vocabulary, width]` if it is the input embedding's too; else None."""
    output, embedding = (
        getattr(layer, "weight", None) for layer in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if not (isinstance(output, Tensor) and isinstance(embedding, Tensor)):
        return None
    return embedding.detach() if output.data_ptr() == embedding.data_ptr() and output.shape == embedding.shape else None


def find_lm_head(model: PreTrainedModel) -> LMHead | None:
    """The output projection of a model, with the bias that the model adds to its logits; None if there is none.

    A model may do more to its logits. `models.backend_selection` verifies that the logits are the model's own.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        return None
    bias: Any = getattr(model, "final_logits_bias", None)
    return LMHead(layer, bias[0] if bias is not None and bool(bias.any()) else None)
