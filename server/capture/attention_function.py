"""The attention that every served model runs: a fused kernel for the output, and rows for whoever records.

It is registered with transformers under the name `sidelight`. It knows attention modules by the `LayerKey` that
`attention_layers` gave them; it does not know requests, tokens or messages.

The output comes from `scaled_dot_product_attention`, and rows from the kernels, which write them into the recorder's
result: only for the sites and queries that it wants, reduced on the way, so that no whole matrix is ever in memory.
While decoding on a CPU, both come from one softmax. While decoding on a GPU, one kernel makes both from a single read
of the keys, for the rows of a whole batch; those of a part of it, where requests want different things, are made beside
it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ...kernels import (
    AttentionParams,
    AttentionTensors,
    LayerSpec,
    attend_to,
    capped_attention,
    decode,
    rows,
    select_impl,
    write_probabilities,
)
from ...kernels.cpu import attend_slots, is_supported

NAME = "sidelight"

_ONE = slice(0, 1)

AttentionKind = Literal["cross", "decoder_self", "encoder_self"]


class LayerKey(NamedTuple):
    """Where in a model an attention module stands.

    `layer` counts from 0 among the modules of the same kind, from the input upwards.
    """

    kind: AttentionKind
    layer: int


class RecordTarget(NamedTuple):
    """Where the rows of one attention call go."""

    result: AttentionTensors  # for the wanted queries
    part: LayerSpec  # what this layer gives
    queries: slice  # the wanted queries, with begin and end
    rows: Tensor | None = None  # the wanted rows of the batch, in order; None: all


class Recorder(Protocol):
    """Takes rows while a model runs."""

    def targets(self, site: LayerKey, shape: tuple[int, int, int, int], device: torch.device) -> Sequence[RecordTarget]:
        """Where the rows of a site go, whose probabilities, somewhere, would be `[B, H, T, S]`."""
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
    padded: bool = True  # whether a batch may have padding
    lengths: Mapping[AttentionKind, Tensor] | None = None  # see `separating`


_active = _Active()


@contextmanager
def record_to(recorder: Recorder | None, *, padded: bool = True) -> Iterator[None]:
    """Sends the rows of forward passes in this thread to `recorder`.

    `padded=False` promises that no batch has padding: masks are then made without a look at it, and every query is
    known to see a key.
    """
    before = _active.recorder, _active.padded
    _active.recorder, _active.padded = recorder, padded
    try:
        yield
    finally:
        _active.recorder, _active.padded = before


@contextmanager
def separating(lengths: Mapping[AttentionKind, Tensor]) -> Iterator[None]:
    """Has steps on a CPU attend row by row, each over as many positions as `lengths` says of it, int64 `[rows]`.

    Then a row's numbers are those that it has alone, to the bit (see `batch_invariance`).
    """
    before, _active.lengths = _active.lengths, lengths
    try:
        yield
    finally:
        _active.lengths = before


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
    AttentionMaskInterface.register(NAME, make_mask)


def make_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """What transformers calls for masks: the boolean ones of SDPA, and None where `is_causal` says it all.

    BART's decoder and its kin make a padding mask of ones and look whether it hides anything, which waits for the
    device; where there is no padding, there is nothing to look at.
    """
    return sdpa_mask(*args, attention_mask=attention_mask if _active.padded else None, **kwargs)


def fuses(tensor: Tensor) -> bool:
    """Whether a decoding step, where a tensor is, makes output and rows in one kernel."""
    return select_impl(tensor) == "triton"


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
    if torch.compiler.is_compiling():
        marked: Any = module
        number: int = marked.sidelight_number
        return _opaque(query, key, value, attention_mask, position_bias, scaling, softcap, number), None
    params = AttentionParams(
        scale=scaling if scaling is not None else query.shape[3] ** -0.5,
        softcap=softcap,
        bias=position_bias,
        mask=attention_mask,
        causal=_is_causal(module, query, attention_mask, is_causal),
        no_empty_rows=not _active.padded,
    )
    if _active.observer is not None:
        _active.observer.observe(module, query, key)
    targets = () if _active.recorder is None else _targets(_active.recorder, module, query, key)
    # What is captured does not change what is written by a single bit on a CPU: there a step makes its output of its
    # probabilities whether or not anybody asks for them, and everything else has SDPA's own.
    if query.shape[2] == 1 and query.dtype == torch.float32 and not fuses(query):
        site: LayerKey | None = getattr(module, "sidelight_site", None)
        lengths = None if _active.lengths is None or site is None else _active.lengths.get(site.kind)
        if lengths is None:
            output, attention = attend_to(query, key, value, params)
        else:
            output, attention = _attend_by_rows(query, key, value, params, lengths)
        write_step(targets, attention)
        return output.transpose(1, 2), None
    # Values of another width than keys are not the kernel's business.
    is_fused = query.shape[2] == 1 and key.shape == value.shape and fuses(query)
    whole = next((target for target in targets if target.rows is None), None) if is_fused else None
    for target in targets:
        if target is not whole:
            _record(target, query, key, params)
    if whole is not None:
        output = decode(query, key, value, params, whole.result, whole.part)
        return output.transpose(1, 2).contiguous(), None
    if softcap is not None:  # SDPA has none (Gemma 2)
        return capped_attention(query, key, value, params).transpose(1, 2).contiguous(), None
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


def _attend_by_rows(
    query: Tensor, key: Tensor, value: Tensor, params: AttentionParams, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """As `attend_to`, each row over its first positions alone, as many as `lengths` says. The others' share is 0."""
    if is_supported() and (params.mask is None or params.mask.dtype == torch.bool):
        return attend_slots(query, key, value, params, lengths)
    output = query.new_empty(*query.shape[:3], value.shape[3])
    attention = query.new_zeros(*query.shape[:3], key.shape[2])
    for row, length in enumerate(lengths.tolist()):
        one = slice(row, row + 1)
        output[one], attention[one, :, :, :length] = attend_to(
            query[one], key[one, :, :length], value[one, :, :length], params.for_row(row, length)
        )
    return output, attention


# Modules by a number that a compiled step can hold.
_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = itertools.count()


def place(module: nn.Module, site: LayerKey) -> None:
    """Tells an attention module where in its model it stands."""
    number = next(_numbers)
    _modules[number] = module
    marked: Any = module
    marked.sidelight_site, marked.sidelight_number = site, number


@torch.library.custom_op(
    "sidelight::attend",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float? scaling, float? softcap,"
    " int module) -> Tensor",
)
def _opaque(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    module: int,
) -> Tensor:
    """`attend`, as one operation that torch.compile does not look into: what is recorded is not known to it.

    So requests with whatever captures come and go, and the compiled step stays the same.
    """
    output, _ = attend(_modules[module], query, key, value, mask, 0.0, scaling, None, bias, softcap)
    return output.contiguous()


@_opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_others: object) -> Tensor:  # noqa: ARG001
    batch, heads, length, _ = query.shape
    return query.new_empty(batch, length, heads, value.shape[3])


def _is_causal(module: nn.Module, query: Tensor, mask: Tensor | None, is_causal: bool | None) -> bool:
    """Whether the absence of a mask means a causal one: the rule of transformers' `sdpa_attention_forward`."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    return bool(causal) and mask is None and query.shape[2] > 1


def _targets(recorder: Recorder, module: nn.Module, query: Tensor, key: Tensor) -> Sequence[RecordTarget]:
    site: LayerKey | None = getattr(module, "sidelight_site", None)
    if site is None:
        return ()
    batch, heads, queries, _ = query.shape
    return recorder.targets(site, (batch, heads, queries, key.shape[2]), query.device)


def write_step(targets: Sequence[RecordTarget], attention: Tensor) -> None:
    """Keeps the rows of a step from its probabilities, float32 `[B, H, 1, S]`."""
    for target in targets:
        mine = attention if target.rows is None else attention[target.rows]
        write_probabilities(mine, target.result, target.part, _ONE)


def targets_of_step(site: LayerKey, shape: tuple[int, int, int, int], device: torch.device) -> Sequence[RecordTarget]:
    """Where the rows of a step go that somebody else makes, by probabilities of this shape, `[B, H, 1, S]`."""
    return () if _active.recorder is None else _active.recorder.targets(site, shape, device)


def _record(target: RecordTarget, query: Tensor, key: Tensor, params: AttentionParams) -> None:
    if target.rows is not None:
        bias, mask = (
            tensor if tensor is None or tensor.shape[0] == 1 else tensor[target.rows]
            for tensor in (params.bias, params.mask)
        )
        query, key, params = query[target.rows], key[target.rows], params._replace(bias=bias, mask=mask)
    # Where they are causal, query 0 sees key 0, as SDPA's `is_causal` has it.
    wanted = target.queries
    rows(query[:, :, wanted], key, params.for_queries(wanted), target.result, target.part)
