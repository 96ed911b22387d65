"""Which recorder receives the attention rows of this thread's forward pass, and the types that both sides share.

An attention layer asks the recorder for targets and writes its rows into them. The recorder and the other settings of
a forward pass are thread-local, so several engines in one process do not disturb each other. This module knows
attention layers and tensors; it does not know requests or tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...kernels import AttentionParams, AttentionTensors, KeyWeighting, LayerSpec

AttentionKind = Literal["cross", "decoder_self", "encoder_self"]


class LayerKey(NamedTuple):
    """The position of an attention layer in a model.

    `layer` counts from 0 among the layers of the same kind, from the input upwards.
    """

    kind: AttentionKind
    layer: int


class RecordTarget(NamedTuple):
    """Where the rows of one attention call are written."""

    tensors: AttentionTensors  # for the recorded queries
    layer_spec: LayerSpec  # which columns of the tensors this layer fills
    queries: slice  # the recorded queries, with start and stop
    rows: Tensor | None = None  # the recorded rows of the batch, in order; None: all
    # Which positions each recorded row leaves out, bool `[1 or rows, positions]`; None: a row leaves out nothing.
    left_out: Tensor | None = None
    # Returns the factors of the keys of the recorded rows, `[1 or rows, H, S]`, from the values `[B, Hkv, S, D]` of the
    # whole batch; None: all are 1.
    factors: Callable[[Tensor], Tensor] | None = None

    def weighting(self, value: Tensor) -> KeyWeighting:
        """Returns the weighting of the recorded rows, from the values `[B, Hkv, S, D]` of the whole batch."""
        # The keys are the last positions: the cache of a sliding window has dropped the first.
        left_out = None if self.left_out is None else self.left_out[:, self.left_out.shape[1] - value.shape[2] :]
        return KeyWeighting(left_out, None if self.factors is None else self.factors(value))


class Recorder(Protocol):
    """Receives attention rows while a model runs.

    There are three recorders: `PassRecorder` keeps the rows of one plan, the runner's `StepRecorder` keeps the rows of
    all plans of a batch, and `FullRecorder` keeps all rows of a model at load.
    """

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> Sequence[RecordTarget]:
        """Returns the targets of a layer whose attention matrix would have the shape `[B, H, T, S]`."""
        ...


class Observer(Protocol):
    """Sees every attention call of a model.

    So `attention_layers` finds a model's attention layers, and `source_recorder` keeps the tensors of an encoder.
    """

    def observe(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> None:
        """Takes the calling module, its queries and keys `[batch, heads, length, head width]`, and what else counts."""
        ...


class _Context(threading.local):
    """The settings of this thread's forward pass."""

    recorder: Recorder | None = None
    observer: Observer | None = None
    padded: bool = True  # whether a batch may have padding
    lengths: Mapping[AttentionKind, Tensor] | None = None  # see `attend_per_row`
    last: LayerKey | None = None  # see `end_behind`


context = _Context()


@contextmanager
def record_to(recorder: Recorder | None, *, padded: bool = True) -> Iterator[None]:
    """Sends the attention rows of this thread's forward passes to `recorder`.

    `padded=False` promises that no batch has padding. Then masks are made without reading the padding mask, and each
    query is known to see at least one key.
    """
    before = context.recorder, context.padded
    context.recorder, context.padded = recorder, padded
    try:
        yield
    finally:
        context.recorder, context.padded = before


@contextmanager
def attend_per_row(lengths: Mapping[AttentionKind, Tensor]) -> Iterator[None]:
    """Makes decode steps on a CPU attend row by row: row i over its first `lengths[kind][i]` positions.

    `lengths` is int64 `[rows]` for each kind. Each row then has exactly the numbers, to the bit, that the row has when
    its request runs alone (see `batch_invariance`).
    """
    before, context.lengths = context.lengths, lengths
    try:
        yield
    finally:
        context.lengths = before


class _PassEndError(Exception):
    """A forward pass has come to the attention behind which nothing of it is wanted."""


@contextmanager
def end_behind(layer_key: LayerKey | None) -> Iterator[None]:
    """Ends the forward pass within, once the rows of an attention layer are recorded: nothing behind it is computed.

    None: the pass runs to its end.
    """
    before, context.last = context.last, layer_key
    try:
        yield
    except _PassEndError:
        pass
    finally:
        context.last = before


def end_pass_behind(layer_key: LayerKey | None) -> None:
    """Ends this thread's forward pass if nothing behind this attention layer is wanted."""
    if context.last is not None and context.last == layer_key:
        raise _PassEndError


@contextmanager
def observe_with(observer: Observer) -> Iterator[None]:
    """Shows the attention calls of this thread's forward passes to `observer`."""
    before, context.observer = context.observer, observer
    try:
        yield
    finally:
        context.observer = before


def record_targets(
    layer_key: LayerKey | None, shape: tuple[int, int, int, int], device: torch.device
) -> Sequence[RecordTarget]:
    """Returns this thread's targets for a layer whose attention matrix would have the shape `[B, H, T, S]`.

    Code that computes the probabilities without `attend` calls this function, and then `write_step_rows`.
    """
    if context.recorder is None or layer_key is None:
        return ()
    return context.recorder.targets(layer_key, shape, device)


def set_layer_key(module: nn.Module, layer_key: LayerKey | None) -> None:
    """Marks a module as the attention layer of this key; None removes the mark."""
    marked: Any = module
    marked.sidelight_layer_key = layer_key


def layer_key_of(module: nn.Module) -> LayerKey | None:
    """Returns the key of an attention layer; None for a module without a key."""
    return getattr(module, "sidelight_layer_key", None)
