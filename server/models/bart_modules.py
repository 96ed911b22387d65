"""The modules of BART-style encoder-decoders, called without the code that transformers has around them.

BART-style families are BART, Marian, mBART, M2M100 (NLLB) and Pegasus. A step of a small model is some hundred short
operations. A family's own code looks at options, builds masks and passes arguments on between the operations, which
takes longer than many an operation. The classes here call one operation after another. The layers are the model's own.
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

from ..capture import attend
from ..layers import FusedSlice, LMHead
from .backend import UnsupportedModelError

# Maps [..., in] to [..., out].
Layer = Callable[[Tensor], Tensor]

# Layers with a norm behind each residual connection (post-norm), and layers with a norm before each part (pre-norm).
_POST_NORM = (BartEncoderLayer, BartDecoderLayer, MarianEncoderLayer, MarianDecoderLayer)
_PRE_NORM = (
    *(MBartEncoderLayer, MBartDecoderLayer),
    *(M2M100EncoderLayer, M2M100DecoderLayer),
    *(PegasusEncoderLayer, PegasusDecoderLayer),
)


def is_bart_style(model: Any) -> bool:
    """Whether a model is an encoder-decoder whose layers are all of the families above."""
    if not model.config.is_encoder_decoder:
        return False
    stacks = (model.get_encoder(), model.get_decoder())
    types: list[set[type]] = [{type(layer) for layer in getattr(stack, "layers", ())} for stack in stacks]
    return all(found and found <= {*_PRE_NORM, *_POST_NORM} for found in types)


def check_lm_head(lm_head: LMHead | None) -> None:
    """Raise UnsupportedModelError for a model without an `LMHead`: BART-style backends return its input."""
    if lm_head is None:
        raise UnsupportedModelError("logits that are more than the product of the last layer")


def is_pre_norm(layer: Any) -> bool:
    """Whether the norms of a layer stand before its parts; otherwise they stand behind the residual connections."""
    return type(layer) in _PRE_NORM


def heads_of(stack: Any) -> tuple[int, float]:
    """The number of attention heads of an encoder or decoder, and the factor of the attention scores.

    Raises UnsupportedModelError if its layers differ in them.
    """
    found = {(layer.self_attn.num_heads, layer.self_attn.scaling) for layer in stack.layers}
    if len(found) != 1:
        raise UnsupportedModelError("layers that differ in heads")
    return found.pop()


class Embedding:
    """The input of the first layer: embedded tokens and positions."""

    def __init__(self, stack: Any) -> None:
        """`stack` is the model's encoder or decoder."""
        self.table: Any = stack.embed_tokens
        self.scale = float(getattr(stack, "embed_scale", 1.0))
        self._positions: Any = stack.embed_positions
        self.norm: nn.LayerNorm | None = getattr(stack, "layernorm_embedding", None)

    def embed_sources(self, tokens: Tensor) -> Tensor:
        """Whole sequences `[B, S]` to `[B, S, width]`."""
        by_shape = (MarianSinusoidalPositionalEmbedding, PegasusSinusoidalPositionalEmbedding)
        argument = tokens.shape if isinstance(self._positions, by_shape) else tokens
        return self._add_positions(tokens, self._positions(argument))

    def embed_step(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """One token of each row, `[n, 1]`, at the row's own position, `[n, 1]`, to `[n, 1, width]`."""
        return self._add_positions(tokens, self.positions(tokens, lengths))

    def positions(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The embeddings of positions `[n, 1]` for tokens `[n, 1]`: `[n, 1, width]`."""
        if isinstance(self._positions, M2M100SinusoidalPositionalEmbedding):
            return self._positions(tokens, None, lengths)
        return self._positions(tokens, 0, position_ids=lengths)

    def _add_positions(self, tokens: Tensor, positions: Tensor) -> Tensor:
        embedded = self.table(tokens)
        if self.scale != 1.0:
            embedded = embedded * self.scale
        embedded = embedded + positions
        return embedded if self.norm is None else self.norm(embedded)


class AttentionBlock(NamedTuple):
    """One attention of a layer with its projections and its norm."""

    before: Layer  # the norm of a pre-norm layer, otherwise the identity
    module: nn.Module
    project: Layer  # to queries; in self-attention to queries, keys and values side by side
    output: Layer
    after: Layer  # the norm of a post-norm layer, otherwise the identity

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """The output `[B, T, width]` of the attention of queries `[B, H, T, D]`."""
        attended, _ = attend(self.module, query, key, value, mask, scaling=scaling, is_causal=False)
        return self.output(attended.flatten(2))


class FeedForwardBlock(NamedTuple):
    """The feed-forward part of a layer with its norm."""

    before: Layer
    widen: Layer
    activate: Layer
    narrow: Layer
    after: Layer

    def run(self, hidden: Tensor) -> Tensor:
        """The output of the layer, of the same shape as `hidden`."""
        return self.after(hidden + self.narrow(self.activate(self.widen(self.before(hidden)))))


# The blocks hold `forward` itself: the layers have no hooks, and for one row the look of nn.Module for hooks takes as
# long as the layer does.


def self_attention_of(layer: Any) -> AttentionBlock:
    """The self-attention of a layer. Raises UnsupportedModelError unless queries, keys and values are one product."""
    before, after = _norms_around(layer, layer.self_attn_layer_norm)
    module = layer.self_attn
    if not isinstance(module.q_proj, FusedSlice):
        raise UnsupportedModelError("projections that are not fused")
    return AttentionBlock(before, module, module.q_proj.fused.linear.forward, module.out_proj.forward, after)


def cross_attention_of(layer: Any) -> AttentionBlock:
    """The cross-attention of a decoder layer."""
    before, after = _norms_around(layer, layer.encoder_attn_layer_norm)
    module = layer.encoder_attn
    return AttentionBlock(before, module, module.q_proj.forward, module.out_proj.forward, after)


def feed_forward_of(layer: Any) -> FeedForwardBlock:
    """The feed-forward part of a layer."""
    before, after = _norms_around(layer, layer.final_layer_norm)
    return FeedForwardBlock(before, layer.fc1.forward, layer.activation_fn, layer.fc2.forward, after)


def final_norm_of(stack: Any) -> Layer:
    """The norm behind the last layer of an encoder or decoder; the identity if there is none."""
    return getattr(stack, "layer_norm", _identity)


def _norms_around(layer: Any, norm: nn.Module) -> tuple[Layer, Layer]:
    """The functions before a part of a layer and behind its residual connection."""
    return (norm.forward, _identity) if is_pre_norm(layer) else (_identity, norm.forward)


def _identity(x: Tensor) -> Tensor:
    return x


class BartEncoder:
    """The encoder of a BART-style model, layer by layer."""

    def __init__(self, encoder: Any) -> None:
        """`encoder` is the model's own. Raises UnsupportedModelError for a part that is not known here."""
        if encoder.dtype == torch.float16:
            raise UnsupportedModelError("an encoder whose numbers are clamped")
        self._embedding = Embedding(encoder)
        self._layers = [(self_attention_of(layer), feed_forward_of(layer)) for layer in encoder.layers]
        self._heads, self._scaling = heads_of(encoder)
        self._final_norm = final_norm_of(encoder)

    def encode(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The output `[B, S, width]` for sources `[B, S]`. `mask`, bool `[B, S]`, is False at padding."""
        mask = None if mask is None else mask[:, None, None]
        hidden = self._embedding.embed_sources(tokens)
        for attention, feed_forward in self._layers:
            projected = attention.project(attention.before(hidden)).view(*tokens.shape, 3, self._heads, -1)
            query, key, value = projected.permute(2, 0, 3, 1, 4)
            hidden = attention.after(hidden + attention.attend(query, key, value, mask, self._scaling))
            hidden = feed_forward.run(hidden)
        return self._final_norm(hidden)
