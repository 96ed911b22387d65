"""The KV cache: keys and values of many sequences at once, each at a length of its own.

A slot is the place of one sequence. Its keys and values are a part of tensors that are made once, so a sequence that
comes or goes copies nothing of the others. Knows models and their caches; knows neither requests nor texts.

A step runs slots that lie side by side, used or idle: they are a view of the tensors, not a copy. What the step
computes for an idle slot is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from ..capture import AttentionKind
from ..transfer import host_array, int_tensor, writable

# Bytes of a line of the processor's cache. torch begins the memory of a tensor at a line.
_LINE = 64

# How the numbers of one slot stand in memory: all positions of a head side by side, as torch multiplies them; or all
# heads of a position side by side, as CPU programs read them.
KVLayout = Literal["head_major", "position_major"]


class KVShape(NamedTuple):
    """What one layer keeps of each position."""

    heads: int
    key_width: int
    value_width: int


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory on a CPU only as far as they are written to. torch's own zeros take all of it at once."""
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    buffer = np.zeros(size + _LINE, np.uint8)
    begin = -buffer.ctypes.data % _LINE
    return torch.from_numpy(buffer[begin : begin + size]).view(dtype).view(*shape)


class KVCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, of all slots: `[slots, heads, length, width]`.

    The cache that holds the layer sets `keys` and `values`, which transformers reads: views of slots and positions.
    """

    is_sliding = False  # windows are in the masks
    is_compileable = False

    def __init__(
        self, slots: int, length: int, shape: KVShape, dtype: torch.dtype, device: torch.device, layout: KVLayout
    ) -> None:
        """Zeros for `slots` slots of `length` positions."""
        super().__init__()

        def slots_of(width: int) -> Tensor:
            # Each slot begins at a line of the cache, as tensors do: the bits of torch's products depend on that.
            size = shape.heads * length * width
            flat = zeros((slots, size + -size % (_LINE // dtype.itemsize)), dtype, device)
            if layout == "position_major":
                return flat[:, :size].unflatten(1, (length, shape.heads, width)).transpose(1, 2)
            return flat[:, :size].unflatten(1, (shape.heads, length, width))

        self.all_keys, self.all_values = slots_of(shape.key_width), slots_of(shape.value_width)
        self._contents = writable(self.all_keys), writable(self.all_values)
        self.heads = torch.arange(shape.heads, device=device)[None]
        self.is_initialized = True

    def bind_views(self, slots: slice, length: int) -> None:
        """Make some slots and their first positions what a forward pass sees."""
        self.keys = self.all_keys[slots, :, :length]
        self.values = self.all_values[slots, :, :length]

    def clear(self, slot: int, positions: slice) -> None:
        """Set some positions of a slot to zero."""
        for contents in self._contents:
            contents[slot, :, positions] = 0

    def move(self, slot: int, to: int, length: int) -> None:
        """Copy the first positions of one slot to another."""
        for contents in self._contents:
            contents[to, :, :length] = contents[slot, :, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The constructor has made the tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """`DecoderSelfCache.update` does the work, since it knows the lengths of the slots."""
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        """The number of keys that a forward pass sees, and the index of the first."""
        return self.keys.shape[2], 0  # pyright: ignore[reportOptionalMemberAccess]

    def get_seq_length(self) -> int:
        """The number of keys that a forward pass sees."""
        return self.keys.shape[2]  # pyright: ignore[reportOptionalMemberAccess]

    def get_max_length(self) -> int:
        """The number of positions of a slot."""
        return self.all_keys.shape[2]


class DecoderSelfCache(Cache):
    """The decoder's keys and values of the tokens that it has read and written.

    Two kinds of forward pass use it: a step of one token for each of some slots, and the prefill of several tokens of
    one slot.
    """

    def __init__(self, layers: Sequence[KVCacheLayer], slots: int, device: torch.device) -> None:
        super().__init__(layers=list(layers))
        self.slot_layers = list(layers)
        self.lengths = torch.zeros(slots, 1, dtype=torch.int64, device=device)  # the position of each slot's next token
        self._rows = torch.arange(slots, device=device)[:, None]
        self._step_lengths: Tensor | None = None  # the lengths of the slots of the step, [n, 1]; None in a prefill
        self._begin = 0  # the first position of the prefill

    def begin_decode(self, slots: slice, length: int) -> None:
        """The next forward pass is a step of some slots, side by side, which sees at most `length` positions."""
        self._step_lengths = self.lengths[slots]
        for layer in self.slot_layers:
            layer.bind_views(slots, length)

    def begin_prefill(self, slot: int, begin: int, count: int) -> None:
        """The next forward pass reads `count` tokens of one slot, from position `begin` on."""
        self._step_lengths = None
        self._begin = begin
        for layer in self.slot_layers:
            layer.bind_views(slice(slot, slot + 1), begin + count)

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values `[B, heads, T, width]` of a layer, and return all that the forward pass sees."""
        layer: Any = self.slot_layers[layer_idx]
        if self._step_lengths is None:
            end = self._begin + key_states.shape[2]
            layer.keys[:, :, self._begin : end] = key_states
            layer.values[:, :, self._begin : end] = value_states
        else:
            index = (self._rows[: len(self._step_lengths)], layer.heads, self._step_lengths)
            layer.keys.index_put_(index, key_states[:, :, 0])
            layer.values.index_put_(index, value_states[:, :, 0])
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> Any:  # noqa: ARG002
        """The position of the first query: `[n, 1]` in a step, a number in a prefill."""
        return self._begin if self._step_lengths is None else self._step_lengths

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """The position of the first query, under the name that transformers' masks use."""
        return self.get_seq_length(layer_idx)


class EncoderDecoderKVCache(EncoderDecoderCache):
    """The decoder's self-attention cache beside the keys and values of the source, which are stored before it runs."""

    def __init__(self, own: DecoderSelfCache, source: Cache) -> None:
        self.self_attention_cache = own
        self.cross_attention_cache = source
        self.is_updated = dict.fromkeys(range(len(source.layers)), True)


class SwappedCache(NamedTuple):
    """The contents of a slot in the host's memory: keys and values `[heads, positions, width]` of each layer."""

    own: list[tuple[Tensor, Tensor]]
    source: list[tuple[Tensor, Tensor]]


class KVCache:
    """The keys and values of all slots, and the lengths of the slots. One model runner owns it, in one thread.

    The methods are a protocol in time. `begin_decode` or `begin_prefill` names the slots and positions of the next
    forward pass, and the backend reads them from here. A step ends with `advance`, which the runner calls once the
    tokens are chosen; a prefill ends with `end_prefill`, which the backend calls.
    """

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
        layout: KVLayout = "head_major",
    ) -> None:
        """`own` and `source` say what each decoder layer keeps of target and source.

        `source` is empty for a model without an encoder.
        """

        def layers(shapes: Sequence[KVShape], length: int) -> list[KVCacheLayer]:
            return [KVCacheLayer(count, length, shape, dtype, device, layout) for shape in shapes]

        self.own = DecoderSelfCache(layers(own, length), count, device)
        # At least 1, so that every query sees a key: an idle slot must not fill its own cache with NaN.
        self.source_lengths = torch.ones(count, 1, dtype=torch.int64, device=device)
        self.source_layers: Sequence[KVCacheLayer] = layers(source, source_length)
        self.cache: Cache = self.own  # as transformers takes it
        if source:
            self.cache = EncoderDecoderKVCache(self.own, Cache(layers=list(self.source_layers)))
        # As `writable` says: on a CPU, NumPy writes lengths.
        self._own_lengths = host_array(self.own.lengths)
        self._source_lengths = host_array(self.source_lengths)
        self._positions = torch.arange(max(length, source_length), device=device)
        self._slots = slice(0, count)  # of the next forward pass
        self._length = 0  # how many positions of targets a step sees
        self._is_uniform = False
        self._prefill_end = 0
        self.source_length = 0  # how many positions of sources the next forward pass sees

    # ---- forward passes ---------------------------------------------------------------------------------------------

    def begin_decode(self, slots: slice, length: int, source_length: int, *, is_uniform: bool = False) -> None:
        """The next forward pass is a step of some slots, which sees at most so many positions of target and source.

        `is_uniform` promises that every slot in use has exactly so many. CPU programs read `stepping`; everything else
        needs `bind_views` first.
        """
        self._slots, self._length, self._is_uniform = slots, length, is_uniform
        self.source_length = source_length

    def bind_views(self) -> None:
        """Show the slots and positions of the step to transformers' modules and to torch's functions."""
        self.own.begin_decode(self._slots, self._length)
        self._bind_sources(self._slots, self.source_length)

    def begin_prefill(self, slot: int, begin: int, count: int, source_length: int) -> None:
        """The next forward pass reads `count` tokens of one slot, from position `begin` on."""
        self._slots, self._prefill_end = slice(slot, slot + 1), begin + count
        self.own.begin_prefill(slot, begin, count)
        self._bind_sources(self._slots, source_length)

    def end_prefill(self) -> None:
        """The slot of the prefill now holds the tokens that were read."""
        self.own.lengths[self._slots.start] = self._prefill_end

    def advance(self, slots: slice | Tensor) -> None:
        """Add one position to some slots: a slice of slots side by side, or int64 `[n]`."""
        if isinstance(slots, slice):
            lengths = self._own_lengths[slots]
            lengths += 1
        else:
            self._own_lengths[host_array(slots)] += 1

    def _bind_sources(self, slots: slice, length: int) -> None:
        self.source_length = length
        for layer in self.source_layers:
            layer.bind_views(slots, length)

    @property
    def stepping(self) -> tuple[int, int, int, int]:
        """The first slot of the step, its number of slots, and the positions of target and source that it sees."""
        return self._slots.start, self._slots.stop - self._slots.start, self._length, self.source_length

    def own_mask(self, window: int | None = None) -> Tensor:
        """The positions that the queries of the step see, their own included: bool `[n, 1, 1, length]`."""
        ends, positions = self.own.lengths[self._slots], self._positions[: self._length]
        visible = positions <= ends
        if window is not None:
            visible &= positions > ends - window
        return visible[:, None, None]

    def source_mask(self) -> Tensor:
        """The positions of the sources of the step that are no padding: bool `[n, 1, 1, source length]`."""
        return (self._positions[: self.source_length] < self.source_lengths[self._slots])[:, None, None]

    def step_lengths(self) -> dict[AttentionKind, Tensor]:
        """How many positions each slot of the step sees: int64 `[n]` for each kind of attention."""
        own, source = self.own.lengths[self._slots, 0] + 1, self.source_lengths[self._slots, 0]
        return {"decoder_self": own.clamp_(max=self._length), "cross": source.clamp(max=max(1, self.source_length))}

    def step_masks(self) -> tuple[Tensor | None, Tensor | None]:
        """The masks of the step for target and source; None if they would hide nothing."""
        return (None, None) if self._is_uniform else (self.own_mask(), self.source_mask())

    def source(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the sources that the next forward pass sees."""
        bound: Any = self.source_layers[layer]
        return bound.keys, bound.values

    # ---- contents of slots ------------------------------------------------------------------------------------------

    def write_source(self, slot: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values `[heads, S, width]` of a source."""
        self.source_layers[layer].all_keys[slot, :, : keys.shape[1]] = keys
        self.source_layers[layer].all_values[slot, :, : values.shape[1]] = values

    def write_target(self, slot: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store the keys and values `[heads, T, width]` of a target, from its first position on."""
        self.own.slot_layers[layer].all_keys[slot, :, : keys.shape[1]] = keys
        self.own.slot_layers[layer].all_values[slot, :, : values.shape[1]] = values

    def end_read(self, slot: int, length: int, source_length: int) -> None:
        """A slot holds a target, of which the first positions count, and a source; 0 without a source."""
        self.own.lengths[slot] = length
        self.source_lengths[slot] = max(1, source_length)

    def move(self, slot: int, to: int, length: int, source_length: int) -> None:
        """Copy the first positions of the target and of the source of one slot to another."""
        for layer in self.own.slot_layers:
            layer.move(slot, to, length)
        for layer in self.source_layers:
            layer.move(slot, to, source_length)
        self.own.lengths[to] = self.own.lengths[slot]
        self.source_lengths[to] = self.source_lengths[slot]

    def copy(self, slots: Sequence[int], to: Sequence[int], positions: slice, source_length: int = 0) -> None:
        """Copy positions of the target of some slots to as many others, and `source_length` positions of the sources.

        No slot is in both lists. The others then have the lengths of the slots that they are copies of.
        """
        device = self.own.lengths.device
        rows, to_rows = int_tensor(slots, device), int_tensor(to, device)
        for layers, part in ((self.own.slot_layers, positions), (self.source_layers, slice(0, source_length))):
            if part.start == part.stop:
                continue
            for layer in layers:
                for contents in (layer.all_keys[:, :, part], layer.all_values[:, :, part]):
                    contents.index_copy_(0, to_rows, contents.index_select(0, rows))
        lengths = [self.own.lengths, *([self.source_lengths] if source_length else [])]
        for values in lengths:
            values.index_copy_(0, to_rows, values.index_select(0, rows))

    def swap_out(self, slot: int, length: int, source_length: int) -> SwappedCache:
        """A copy of the contents of a slot, in the host's memory."""

        def copies(layers: Sequence[KVCacheLayer], count: int) -> list[tuple[Tensor, Tensor]]:
            views = [(layer.all_keys[slot, :, :count], layer.all_values[slot, :, :count]) for layer in layers]
            return [(keys.to("cpu", copy=True), values.to("cpu", copy=True)) for keys, values in views]

        return SwappedCache(copies(self.own.slot_layers, length), copies(self.source_layers, source_length))

    def swap_in(self, slot: int, contents: SwappedCache) -> None:
        """Fill a slot with contents that were swapped out."""
        for layers, copies in ((self.own.slot_layers, contents.own), (self.source_layers, contents.source)):
            for layer, (keys, values) in zip(layers, copies, strict=True):
                layer.all_keys[slot, :, : keys.shape[1]] = keys.to(layer.all_keys.device)
                layer.all_values[slot, :, : values.shape[1]] = values.to(layer.all_values.device)
        if contents.source:
            self.source_lengths[slot] = max(1, contents.source[0][0].shape[1])
        self.own.lengths[slot] = contents.own[0][0].shape[1]

    def take_back(self, slot: int, length: int, written: int) -> None:
        """Go back to the first `length` of the `written` positions of a slot, and set the others to zero."""
        for layer in self.own.slot_layers:
            layer.clear(slot, slice(length, written))
        self.own.lengths[slot] = length

    def clear(self, slot: int, length: int, source_length: int) -> None:
        """Set the contents and the lengths of a slot to zero.

        The contents may be NaN, and the product of NaN with a probability of 0 would be NaN, too.
        """
        for layer in self.own.slot_layers:
            layer.clear(slot, slice(0, length))
        for layer in self.source_layers:
            layer.clear(slot, slice(0, source_length))
        # An idle slot inside a step must not point beyond the positions that the step sees.
        self._own_lengths[slot] = 0
        self._source_lengths[slot] = 1


def bytes_per_slot(
    own: Sequence[KVShape], length: int, source: Sequence[KVShape], source_length: int, dtype: torch.dtype
) -> int:
    """The size of the keys and values of `length` target and `source_length` source positions."""
    numbers = sum(length * shape.heads * (shape.key_width + shape.value_width) for shape in own)
    numbers += sum(source_length * shape.heads * (shape.key_width + shape.value_width) for shape in source)
    return numbers * dtype.itemsize
