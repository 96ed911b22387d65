"""The attention that every served model runs: a fused kernel for the output, and rows for whoever records.

It is registered with transformers under the name `sidelight`. It knows attention modules by the `Site` that
`sites.py` gave them; it does not know requests, tokens or messages.

The output comes from `scaled_dot_product_attention`. Rows are computed beside it, in float32 whatever the model's type,
only for sites that the active recorder wants, and only for the queries that it wants: never a whole matrix unless a
whole matrix was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sidelight"

Kind = Literal["cross", "decoder_self", "encoder_self"]


@dataclass(frozen=True)
class Site:
    """Where in a model an attention module stands.

    `layer` counts from 0 among the modules of the same kind, from the input upwards.
    """

    kind: Kind
    layer: int


class Recorder(Protocol):
    """Takes rows while a model runs."""

    def heads(self, site: Site) -> Sequence[int] | None:
        """The heads wanted at a site; None for all of them, an empty sequence for nothing at all."""
        ...

    def queries(self, site: Site, length: int) -> slice:
        """Which of the `length` queries of this forward pass are wanted."""
        ...

    def record(self, site: Site, rows: Tensor) -> None:
        """Takes the probabilities, float32 `[batch, heads wanted, queries wanted, keys]`."""
        ...


class Observer(Protocol):
    """Sees every attention call of a model, for finding out where its modules stand."""

    def observe(self, module: nn.Module, query: Tensor, key: Tensor) -> None:
        """Takes the module that calls, and its queries and keys `[batch, heads, length, head width]`."""
        ...


class _Active(threading.local):
    """What is listening to this thread's forward pass. Thread-local, so that engines do not hear one another."""

    recorder: Recorder | None = None
    observer: Observer | None = None


_active = _Active()


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Sends the rows of forward passes in this thread to `recorder`."""
    before, _active.recorder = _active.recorder, recorder
    try:
        yield
    finally:
        _active.recorder = before


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Shows the attention calls of forward passes in this thread to `observer`."""
    before, _active.observer = _active.observer, observer
    try:
        yield
    finally:
        _active.observer = before


def register() -> None:
    """Makes `attn_implementation="sidelight"` known to transformers. Calling it again changes nothing."""
    AttentionInterface.register(NAME, attend)
    # The same boolean masks as SDPA, and None where is_causal says it all.
    AttentionMaskInterface.register(NAME, sdpa_mask)


class UnsupportedAttentionError(Exception):
    """The model hands its attention something that changes probabilities in a way not known here."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention.

    Takes query `[B, H, T, D]`, key and value `[B, Hkv, S, D]`; returns the output `[B, T, H, D]`, and no weights.
    """
    if kwargs.get("s_aux") is not None:
        raise UnsupportedAttentionError("attention sinks")
    causal = _is_causal(module, query, attention_mask, is_causal)
    inputs = _Inputs(query, key, attention_mask, causal, scaling, position_bias, softcap)
    if _active.observer is not None:
        _active.observer.observe(module, query, key)
    if _active.recorder is not None:
        _record(_active.recorder, module, inputs)
    if softcap is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            position_bias=position_bias,
            **kwargs,
        )
    # SDPA has no soft cap (Gemma 2), so the output is made from the probabilities.
    rows = inputs.probabilities(None, slice(None)).to(value.dtype)
    groups = query.shape[1] // value.shape[1]
    return (rows @ value.repeat_interleave(groups, dim=1)).transpose(1, 2).contiguous(), None


def _is_causal(module: nn.Module, query: Tensor, mask: Tensor | None, is_causal: bool | None) -> bool:
    """Whether the absence of a mask means a causal one: the rule of transformers' `sdpa_attention_forward`."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return bool(causal) and mask is None and query.shape[2] > 1


def _record(recorder: Recorder, module: nn.Module, inputs: _Inputs) -> None:
    site: Site | None = getattr(module, "sidelight_site", None)
    if site is None:
        return
    heads = recorder.heads(site)
    if heads is not None and not len(heads):
        return
    queries = recorder.queries(site, inputs.query.shape[2])
    if queries.start is not None and queries.start >= queries.stop:
        return
    recorder.record(site, inputs.probabilities(heads, queries))


@dataclass(frozen=True)
class _Inputs:
    """All that decides a layer's probabilities."""

    query: Tensor  # [B, H, T, D]
    key: Tensor  # [B, Hkv, S, D]
    mask: Tensor | None  # bool (True: may see) or additive, [B or 1, 1 or H, T, S]
    causal: bool
    scaling: float | None
    position_bias: Tensor | None  # additive, [1, H, T, S]
    softcap: float | None

    def probabilities(self, heads: Sequence[int] | None, queries: slice) -> Tensor:
        """Attention probabilities in float32, `[B, heads, queries, S]`.

        softmax(cap(q k^T * scaling + bias) + mask), where cap(x) = softcap * tanh(x / softcap) if there is one
        (Gemma 2, arXiv:2408.00118). Grouped query heads share a key head without a copy of it. A row that sees
        nothing is zeros.
        """
        query, key = self.query[:, :, queries].float(), self.key.float()
        bias, mask = _rows_of(self.position_bias, queries), _rows_of(self.mask, queries)
        groups = query.shape[1] // key.shape[1]
        if heads is not None:
            index = torch.tensor(heads, device=query.device)
            query, key = query[:, index], key[:, index // groups]
            bias, mask, groups = _heads_of(bias, index), _heads_of(mask, index), 1
        batch, head_count, length, width = query.shape
        query = query.reshape(batch, key.shape[1], groups * length, width)
        scores = (query @ key.transpose(2, 3)).view(batch, head_count, length, key.shape[2])
        scores = scores.mul_(self.scaling if self.scaling is not None else width**-0.5)
        if bias is not None:
            scores = scores.add_(bias)
        if self.softcap is not None:
            scores = scores.div_(self.softcap).tanh_().mul_(self.softcap)
        if self.causal:
            mask = _causal_mask(self.query.shape[2], key.shape[2], query.device)[queries]
        if mask is None:
            return scores.softmax(-1)
        if mask.dtype != torch.bool:
            return scores.add_(mask).softmax(-1)
        probabilities = scores.masked_fill_(~mask, float("-inf")).softmax(-1)
        return probabilities.masked_fill_(~mask.any(-1, keepdim=True), 0.0)


def _rows_of(tensor: Tensor | None, queries: slice) -> Tensor | None:
    """The rows of a mask or bias `[.., .., T or 1, S]`."""
    return tensor if tensor is None or tensor.shape[2] == 1 else tensor[:, :, queries]


def _heads_of(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    """The heads of a mask or bias `[.., H or 1, .., S]`."""
    return tensor if tensor is None or tensor.shape[1] == 1 else tensor[:, index]


def _causal_mask(length: int, keys: int, device: torch.device) -> Tensor:
    """True where a query may see a key, `[T, S]`: aligned at the upper left, as SDPA's `is_causal` is."""
    return torch.ones(length, keys, dtype=torch.bool, device=device).tril_()
