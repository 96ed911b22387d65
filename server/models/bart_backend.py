"""BART and its kin without the code around their layers that transformers has for every other use.

A step of a small model is some hundred short operations. A family's own modules look at options, build masks and pass
arguments on between them, which takes longer than many an operation; here they follow one another. The layers are the
model's own, and so is the attention, by the same function. `transformers_backend` compares the numbers of both ways at
load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer
from transformers.models.m2m_100.modeling_m2m_100 import (
    M2M100DecoderLayer,
    M2M100EncoderLayer,
    M2M100SinusoidalPositionalEmbedding,
)
from transformers.models.marian.modeling_marian import (
    MarianDecoderLayer,
    MarianEncoderLayer,
    MarianSinusoidalPositionalEmbedding,
)
from transformers.models.mbart.modeling_mbart import MBartDecoderLayer, MBartEncoderLayer
from transformers.models.pegasus.modeling_pegasus import (
    PegasusDecoderLayer,
    PegasusEncoderLayer,
    PegasusSinusoidalPositionalEmbedding,
)

from ..capture.attention_function import attend
from ..layers.fused_qkv import FusedSlice
from .kv_cache import KVCache

# Maps [..., in] to [..., out].
Layer = Callable[[Tensor], Tensor]

# Layers whose parts normalize what comes out of them, and those whose parts normalize what goes in.
_NORMALIZES_OUTPUT = (BartEncoderLayer, BartDecoderLayer, MarianEncoderLayer, MarianDecoderLayer)
_NORMALIZES_INPUT = (
    *(MBartEncoderLayer, MBartDecoderLayer),
    *(M2M100EncoderLayer, M2M100DecoderLayer),
    *(PegasusEncoderLayer, PegasusDecoderLayer),
)


class UnknownLayerError(Exception):
    """A model that cannot be run directly."""


class _Attention(NamedTuple):
    """One attention of a layer, between its norms."""

    before: Layer
    module: nn.Module
    project: Layer  # to queries; to queries, keys and values where the positions are its own
    output: Layer
    after: Layer

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """What it makes of queries `[B, H, T, D]`: `[B, T, width]`."""
        attended, _ = attend(self.module, query, key, value, mask, scaling=scaling, is_causal=False)
        return self.output(attended.flatten(2))


class _FeedForward(NamedTuple):
    """The last part of a layer, between its norms."""

    before: Layer
    widen: Layer
    activate: Layer
    narrow: Layer
    after: Layer

    def fed(self, hidden: Tensor) -> Tensor:
        """What comes out of the layer."""
        return self.after(hidden + self.narrow(self.activate(self.widen(self.before(hidden)))))


class DirectEncoder:
    """The encoder of a model."""

    def __init__(self, encoder: Any) -> None:
        """`encoder` is a family's own. Raises UnknownLayerError."""
        check_layers(encoder)
        if encoder.dtype == torch.float16:
            raise UnknownLayerError("an encoder whose numbers are clamped")
        self._embedding = Embedding(encoder)
        self._layers = [(_own_attention(layer), _feed_forward(layer)) for layer in encoder.layers]
        self._heads, self._scaling = heads_of(encoder)
        self._end: Layer = getattr(encoder, "layer_norm", _same)

    def read(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """What the encoder makes of sources `[B, S]`: `[B, S, width]`. `mask`, bool `[B, S]`, hides padding."""
        mask = None if mask is None else mask[:, None, None]
        hidden = self._embedding.of_sources(tokens)
        for own, forward in self._layers:
            projected = own.project(own.before(hidden)).view(*tokens.shape, 3, self._heads, -1)
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            hidden = own.after(hidden + own.attended(query, key, value, mask, self._scaling))
            hidden = forward.fed(hidden)
        return self._end(hidden)


class DirectDecoder:
    """The decoder of a model, for steps of one token of each sequence."""

    def __init__(self, decoder: Any) -> None:
        """`decoder` is a family's own. Raises UnknownLayerError."""
        check_layers(decoder)
        self._embedding = Embedding(decoder)
        self._layers = [
            (_own_attention(layer), _source_attention(layer), _feed_forward(layer)) for layer in decoder.layers
        ]
        self._heads, self._scaling = heads_of(decoder)
        self._end: Layer = getattr(decoder, "layer_norm", _same)

    def step(self, tokens: Tensor, slots: KVCache) -> Tensor:
        """One token for each slot that has begun a step: `[n, 1]`. Returns what it makes of them, `[n, width]`."""
        hidden = self._embedding.of_step(tokens, slots.own.get_seq_length())
        own_mask, source_mask = slots.step_masks()
        for place, (own, source, forward) in enumerate(self._layers):
            query, key, value = own.project(own.before(hidden)).view(len(tokens), 3, self._heads, 1, -1).unbind(1)
            key, value = slots.own.update(key, value, place)
            hidden = own.after(hidden + own.attended(query, key, value, own_mask, self._scaling))
            query = source.project(source.before(hidden)).view(len(tokens), self._heads, 1, -1)
            key, value = slots.source(place)
            hidden = source.after(hidden + source.attended(query, key, value, source_mask, self._scaling))
            hidden = forward.fed(hidden)
        return self._end(hidden)[:, 0]


class Embedding:
    """What stands for tokens at their positions, before the first layer."""

    def __init__(self, stack: Any) -> None:
        self.table: Any = stack.embed_tokens
        self.scale = float(getattr(stack, "embed_scale", 1.0))
        self._positions: Any = stack.embed_positions
        self.norm: nn.LayerNorm | None = getattr(stack, "layernorm_embedding", None)

    def of_sources(self, tokens: Tensor) -> Tensor:
        """Of whole sequences, `[B, S]`: `[B, S, width]`."""
        by_shape = (MarianSinusoidalPositionalEmbedding, PegasusSinusoidalPositionalEmbedding)
        given = tokens.shape if isinstance(self._positions, by_shape) else tokens
        return self._both(tokens, self._positions(given))

    def of_step(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Of one token of each row, `[n, 1]`, at a position of its own, `[n, 1]`: `[n, 1, width]`. See `positions`."""
        return self._both(tokens, self.positions(tokens, lengths))

    def positions(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What stands for positions `[n, 1]`, of these tokens, `[n, 1]`: `[n, 1, width]`."""
        if isinstance(self._positions, M2M100SinusoidalPositionalEmbedding):
            return self._positions(tokens, None, lengths)
        return self._positions(tokens, 0, position_ids=lengths)

    def _both(self, tokens: Tensor, positions: Tensor) -> Tensor:
        embedded = self.table(tokens)
        if self.scale != 1.0:
            embedded = embedded * self.scale
        embedded = embedded + positions
        return embedded if self.norm is None else self.norm(embedded)


def _same(x: Tensor) -> Tensor:
    return x


def check_layers(stack: Any) -> None:
    """Raises UnknownLayerError unless all layers are known here."""
    kinds: set[type] = {type(layer) for layer in getattr(stack, "layers", ())}
    if not kinds or not kinds <= {*_NORMALIZES_INPUT, *_NORMALIZES_OUTPUT}:
        raise UnknownLayerError("layers of a family that is not known here")


def normalizes_input(layer: Any) -> bool:
    """Whether the parts of a layer normalize what goes in; otherwise they do what comes out."""
    return type(layer) in _NORMALIZES_INPUT


def _around(layer: Any, norm: nn.Module) -> tuple[Layer, Layer]:
    """What is done to the input of a part of a layer and to its output."""
    return (norm.forward, _same) if normalizes_input(layer) else (_same, norm.forward)


# `forward` itself: nothing hooks into these, and nn.Module's look for hooks takes as long as they do for one row.


def _own_attention(layer: Any) -> _Attention:
    before, after = _around(layer, layer.self_attn_layer_norm)
    module = layer.self_attn
    if not isinstance(module.q_proj, FusedSlice):
        raise UnknownLayerError("projections that are not joined")
    return _Attention(before, module, module.q_proj.joined.linear.forward, module.out_proj.forward, after)


def _source_attention(layer: Any) -> _Attention:
    before, after = _around(layer, layer.encoder_attn_layer_norm)
    module = layer.encoder_attn
    return _Attention(before, module, module.q_proj.forward, module.out_proj.forward, after)


def _feed_forward(layer: Any) -> _FeedForward:
    before, after = _around(layer, layer.final_layer_norm)
    return _FeedForward(before, layer.fc1.forward, layer.activation_fn, layer.fc2.forward, after)


def heads_of(stack: Any) -> tuple[int, float]:
    """How many heads the attentions have, and what their scores are multiplied by."""
    found = {(layer.self_attn.num_heads, layer.self_attn.scaling) for layer in stack.layers}
    if len(found) != 1:
        raise UnknownLayerError("layers that differ in heads")
    return found.pop()
