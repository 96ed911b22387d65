"""Slots: one cache for many sequences at once, each at a length of its own.

A slot is one line of a running batch. Its keys and values have a place in tensors that are made once, so a sequence
that comes or goes copies nothing of the others. Knows models and their caches; knows neither requests nor texts.

A batched step runs slots that lie side by side, in use or not: they are a view of the tensors, not a copy. What an idle
one computes is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from ..capture.attention_function import AttentionKind

# Bytes of a line of the processor's cache, at which torch begins the memory of a tensor.
_LINE = 64


class KVShape(NamedTuple):
    """What one layer keeps of each position."""

    heads: int
    key_width: int
    value_width: int


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory on a CPU only as far as they are written to: torch's own take all of it at once."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    held = np.zeros(size + _LINE, np.uint8)
    begin = -held.ctypes.data % _LINE
    return torch.from_numpy(held[begin : begin + size]).view(dtype).view(*shape)


class KVCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, of all slots: `[slots, heads, length, width]`.

    What transformers sees of it is set by the cache that it is a part of: views of some slots and positions.
    """

    is_sliding = False  # windows are in the masks
    is_compileable = False

    def __init__(
        self, slots: int, length: int, shape: KVShape, dtype: torch.dtype, device: torch.device, *, heads_together: bool
    ) -> None:
        """`heads_together` says that all heads of a position stand side by side: as programs read them.

        Otherwise all positions of a head do, as torch multiplies them.
        """
        super().__init__()

        def room(width: int) -> Tensor:
            # Each slot begins at a line of the cache, as tensors do: the bits of torch's products depend on that.
            size = shape.heads * length * width
            rooms = zeros((slots, size + -size % (_LINE // dtype.itemsize)), dtype, device)
            if heads_together:
                return rooms[:, :size].unflatten(1, (length, shape.heads, width)).transpose(1, 2)
            return rooms[:, :size].unflatten(1, (shape.heads, length, width))

        self.all_keys, self.all_values = room(shape.key_width), room(shape.value_width)
        self.heads = torch.arange(shape.heads, device=device)[None]
        self.is_initialized = True

    def show(self, slots: slice, length: int) -> None:
        """Makes some slots and their first positions what a forward pass sees."""
        self.keys = self.all_keys[slots, :, :length]
        self.values = self.all_values[slots, :, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Is the cache's business, which knows where slots stand."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """How many keys a forward pass sees, and how many were before them."""
        return self.keys.shape[2], 0  # pyright: ignore[reportOptionalMemberAccess]

    def get_seq_length(self) -> int:
        """How many keys a forward pass sees."""
        return self.keys.shape[2]  # pyright: ignore[reportOptionalMemberAccess]

    def get_max_length(self) -> int:
        """How many there is room for."""
        return self.all_keys.shape[2]


class DecoderSelfCache(Cache):
    """The decoder's keys and values of what it has read and written itself.

    Two kinds of forward pass use it: a step of one token for each of the first slots, and the reading of several tokens
    for one slot.
    """

    def __init__(self, layers: Sequence[KVCacheLayer], slots: int, device: torch.device) -> None:
        super().__init__(layers=list(layers))
        self.slot_layers = list(layers)
        self.lengths = torch.zeros(slots, 1, dtype=torch.int64, device=device)  # where each slot's next token goes
        self._rows = torch.arange(slots, device=device)[:, None]
        self._step: Tensor | None = None  # the lengths of the slots that step, [n, 1]
        self._begin = 0

    def begin_decode(self, slots: slice, length: int) -> None:
        """The next forward pass is a step of some slots, side by side, which sees so many positions at most."""
        self._step = self.lengths[slots]
        for layer in self.slot_layers:
            layer.show(slots, length)

    def begin_prefill(self, slot: int, begin: int, count: int) -> None:
        """The next forward pass reads so many tokens of one slot, from position `begin` on."""
        self._step = None
        self._begin = begin
        for layer in self.slot_layers:
            layer.show(slice(slot, slot + 1), begin + count)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Keeps what a layer has computed, `[B, heads, T, width]`, and returns all that the pass sees."""
        layer: Any = self.slot_layers[layer_idx]
        if self._step is None:
            end = self._begin + key_states.shape[2]
            layer.keys[:, :, self._begin : end] = key_states
            layer.values[:, :, self._begin : end] = value_states
        else:
            place = (self._rows[: len(self._step)], layer.heads, self._step)
            layer.keys.index_put_(place, key_states[:, :, 0])
            layer.values.index_put_(place, value_states[:, :, 0])
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> Any:  # noqa: ARG002
        """How far the pass's sequences are: `[n, 1]` in a step, a number in a reading."""
        return self._begin if self._step is None else self._step

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Where its first query stands."""
        return self.get_seq_length(layer_idx)


class EncoderDecoderKVCache(EncoderDecoderCache):
    """The decoder's own cache beside the keys and values of the source, which are there before it runs."""

    def __init__(self, own: DecoderSelfCache, source: Cache) -> None:
        self.self_attention_cache = own
        self.cross_attention_cache = source
        self.is_updated = dict.fromkeys(range(len(source.layers)), True)


class SwappedCache(NamedTuple):
    """What a slot holds, moved out of it: keys and values `[heads, positions, width]` of each layer."""

    own: list[tuple[Tensor, Tensor]]
    source: list[tuple[Tensor, Tensor]]


class KVCache:
    """The caches of a number of slots, and how far each of them is."""

    def __init__(
        self,
        count: int,
        own: Sequence[KVShape],
        length: int,
        source: Sequence[KVShape],
        source_length: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        heads_together: bool = False,
    ) -> None:
        """`own` and `source` say what each decoder layer keeps of target and source; `source` is empty without one.

        `heads_together` is as in `KVCacheLayer`.
        """

        def layers(shapes: Sequence[KVShape], length: int) -> list[KVCacheLayer]:
            return [
                KVCacheLayer(count, length, shape, dtype, device, heads_together=heads_together) for shape in shapes
            ]

        self.own = DecoderSelfCache(layers(own, length), count, device)
        # At least 1, so that every query sees something: an idle slot must not fill its own cache with NaN.
        self.source_lengths = torch.ones(count, 1, dtype=torch.int64, device=device)
        self._source_layers = layers(source, source_length)
        self.cache: Cache = self.own
        if source:
            self.cache = EncoderDecoderKVCache(self.own, Cache(layers=list(self._source_layers)))
        self._positions = torch.arange(max(length, source_length), device=device)
        self._stepping = slice(0, count)
        self._length = 0
        self._are_even = False
        self.source_length = 0  # how many positions of sources the next forward pass sees

    def begin_decode(self, slots: slice, length: int, source_length: int, *, are_even: bool = False) -> None:
        """The next forward pass is a step of some slots, with so many positions of target and source at most.

        `are_even` says that this is how many each has that is in use. Programs look at `stepping`; before anything
        else runs, `bind_views`.
        """
        self._stepping, self._length, self._are_even = slots, length, are_even
        self.source_length = source_length

    def bind_views(self) -> None:
        """Lets the model's own code, and torch's functions, see what belongs to the step that has begun."""
        self.own.begin_decode(self._stepping, self._length)
        self._show_sources(self._stepping, self.source_length)

    def begin_prefill(self, slot: int, begin: int, count: int, source_length: int) -> None:
        """The next forward pass reads so many tokens of one slot, from position `begin` on."""
        self.own.begin_prefill(slot, begin, count)
        self._show_sources(slice(slot, slot + 1), source_length)

    def _show_sources(self, slots: slice, length: int) -> None:
        self.source_length = length
        for layer in self._source_layers:
            layer.show(slots, length)

    @property
    def stepping(self) -> tuple[int, int, int, int]:
        """Of the step: its first slot, how many it has, and how many positions of target and source it shows."""
        return self._stepping.start, self._stepping.stop - self._stepping.start, self._length, self.source_length

    @property
    def source_layers(self) -> Sequence[KVCacheLayer]:
        """The layers of what is kept of sources."""
        return self._source_layers

    def own_mask(self, window: int | None = None) -> Tensor:
        """Which positions the queries of the step see, themselves included: bool `[n, 1, 1, length]`."""
        ends, positions = self.own.lengths[self._stepping], self._positions[: self._length]
        seen = positions <= ends
        if window is not None:
            seen &= positions > ends - window
        return seen[:, None, None]

    def source_mask(self) -> Tensor:
        """Which positions of the step's sources there are: bool `[n, 1, 1, source length]`."""
        return (self._positions[: self.source_length] < self.source_lengths[self._stepping])[:, None, None]

    def step_lengths(self) -> dict[AttentionKind, Tensor]:
        """How many positions each of the step's slots sees, of those that are shown: int64 `[n]`."""
        own, source = self.own.lengths[self._stepping, 0] + 1, self.source_lengths[self._stepping, 0]
        return {"decoder_self": own.clamp_(max=self._length), "cross": source.clamp(max=max(1, self.source_length))}

    def step_masks(self) -> tuple[Tensor | None, Tensor | None]:
        """The step's masks of target and source; None where they would hide nothing from anybody."""
        return (None, None) if self._are_even else (self.own_mask(), self.source_mask())

    def source(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the sources that the next forward pass sees."""
        shown: Any = self._source_layers[layer]
        return shown.keys, shown.values

    def write_source(self, slot: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keeps a source's keys and values, `[heads, S, width]`."""
        self._source_layers[layer].all_keys[slot, :, : keys.shape[1]] = keys
        self._source_layers[layer].all_values[slot, :, : values.shape[1]] = values

    def move(self, slot: int, to: int) -> None:
        """Copies what one slot holds to another."""
        for layer in (*self.own.slot_layers, *self._source_layers):
            layer.all_keys[to] = layer.all_keys[slot]
            layer.all_values[to] = layer.all_values[slot]
        self.own.lengths[to] = self.own.lengths[slot]
        self.source_lengths[to] = self.source_lengths[slot]

    def swap_out(self, slot: int, length: int, source_length: int) -> SwappedCache:
        """A copy of what a slot holds, in the host's memory."""

        def copied(layers: Sequence[KVCacheLayer], count: int) -> list[tuple[Tensor, Tensor]]:
            places = [(layer.all_keys[slot, :, :count], layer.all_values[slot, :, :count]) for layer in layers]
            return [(keys.to("cpu", copy=True), values.to("cpu", copy=True)) for keys, values in places]

        return SwappedCache(copied(self.own.slot_layers, length), copied(self._source_layers, source_length))

    def swap_in(self, slot: int, contents: SwappedCache) -> None:
        """Fills a slot with what was taken out of one."""
        for layers, held in ((self.own.slot_layers, contents.own), (self._source_layers, contents.source)):
            for layer, (keys, values) in zip(layers, held, strict=True):
                layer.all_keys[slot, :, : keys.shape[1]] = keys.to(layer.all_keys.device)
                layer.all_values[slot, :, : values.shape[1]] = values.to(layer.all_values.device)
        if contents.source:
            self.source_lengths[slot] = contents.source[0][0].shape[1]
        self.own.lengths[slot] = contents.own[0][0].shape[1]

    def advance(self, slots: slice | Tensor) -> None:
        """Some have one more position, slots side by side or int64 `[n]`."""
        if isinstance(slots, slice):
            self.own.lengths[slots].add_(1)
        else:
            self.own.lengths[slots] += 1

    def clear(self, slot: int, length: int, source_length: int) -> None:
        """Forgets what a slot holds, and its lengths. It may be NaN, and a product with a share of 0 would be, too."""
        for layers, count in ((self.own.slot_layers, length), (self._source_layers, source_length)):
            for layer in layers:
                layer.all_keys[slot, :, :count] = 0
                layer.all_values[slot, :, :count] = 0
        # For who comes next; and while the slot is idle, a step may see fewer positions than this one had.
        self.own.lengths[slot] = 0
        self.source_lengths[slot] = 1


def bytes_per_slot(
    own: Sequence[KVShape], length: int, source: Sequence[KVShape], source_length: int, dtype: torch.dtype
) -> int:
    """How much memory the keys and values of so many positions take."""
    numbers = sum(length * shape.heads * (shape.key_width + shape.value_width) for shape in own)
    numbers += sum(source_length * shape.heads * (shape.key_width + shape.value_width) for shape in source)
    return numbers * dtype.itemsize
