"""A decoding step of BART and its kin, without the code around it that transformers has for every other use.

A step of a small model is some hundred short operations. A family's own modules look at options, build masks and pass
arguments on between them, which takes longer than many an operation; here they follow one another. The layers are the
model's own, and so is the attention, by the same function. `layouts` compares the logits of both ways at load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.bart.modeling_bart import BartDecoderLayer
from transformers.models.m2m_100.modeling_m2m_100 import M2M100DecoderLayer, M2M100SinusoidalPositionalEmbedding
from transformers.models.marian.modeling_marian import MarianDecoderLayer
from transformers.models.mbart.modeling_mbart import MBartDecoderLayer
from transformers.models.pegasus.modeling_pegasus import PegasusDecoderLayer

from .attention import attend
from .projections import JoinedPart
from .slots import Slots

# Maps [n, in] to [n, out].
Layer = Callable[[Tensor], Tensor]

# Whether the parts of a decoder layer normalize what goes into them, or what comes out.
_NORMALIZES_INPUT: dict[type, bool] = {
    BartDecoderLayer: False,
    MarianDecoderLayer: False,
    MBartDecoderLayer: True,
    M2M100DecoderLayer: True,
    PegasusDecoderLayer: True,
}


class _Attention(NamedTuple):
    """Attention to the decoder's own positions, or to the source's."""

    before: Layer
    project: Layer  # to queries; to queries, keys and values where the positions are its own
    module: nn.Module
    output: Layer
    after: Layer


class _FeedForward(NamedTuple):
    before: Layer
    widen: Layer
    activate: Layer
    narrow: Layer
    after: Layer


class DirectDecoder:
    """The decoder of a model, for steps of one token of each sequence."""

    def __init__(self, decoder: Any) -> None:
        """`decoder` is a family's own. Raises TypeError, AttributeError or IndexError where it is none known here."""
        first: Any = decoder.layers[0]
        if any(type(layer) not in _NORMALIZES_INPUT for layer in decoder.layers):
            raise TypeError(f"a decoder of {type(first).__name__}")
        self._heads: int = first.self_attn.num_heads
        self._scaling: float = first.self_attn.scaling
        self._embed: Layer = decoder.embed_tokens
        self._embed_scale = float(getattr(decoder, "embed_scale", 1.0))
        self._embed_positions: Any = decoder.embed_positions
        self._begin: Layer = getattr(decoder, "layernorm_embedding", _same)
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._end: Layer = getattr(decoder, "layer_norm", _same)

    def step(self, tokens: Tensor, slots: Slots) -> Tensor:
        """One token for each slot that has begun a step: `[n, 1]`. Returns what it makes of them, `[n, width]`."""
        hidden = self._embed(tokens)
        if self._embed_scale != 1.0:
            hidden = hidden * self._embed_scale
        hidden = self._begin((hidden + self._positions(tokens, slots.own.get_seq_length()))[:, 0])
        own_mask, source_mask = slots.step_masks()
        for place, (own, source, forward) in enumerate(self._layers):
            query, key, value = own.project(own.before(hidden)).view(len(tokens), 3, self._heads, 1, -1).unbind(1)
            key, value = slots.own.update(key, value, place)
            hidden = own.after(hidden + self._attend(own, query, key, value, own_mask))
            query = source.project(source.before(hidden)).view(len(tokens), self._heads, 1, -1)
            key, value = slots.source(place)
            hidden = source.after(hidden + self._attend(source, query, key, value, source_mask))
            inner = forward.activate(forward.widen(forward.before(hidden)))
            hidden = forward.after(hidden + forward.narrow(inner))
        return self._end(hidden)

    def _attend(self, part: _Attention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        attended, _ = attend(part.module, query, key, value, mask, scaling=self._scaling, is_causal=False)
        return part.output(attended.reshape(len(query), -1))

    def _positions(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """What stands for positions of their own for each row, `[n, 1, width]`; see `positions`."""
        if isinstance(self._embed_positions, M2M100SinusoidalPositionalEmbedding):
            return self._embed_positions(tokens, None, lengths)
        return self._embed_positions(tokens, 0, position_ids=lengths)


def _layer(layer: Any) -> tuple[_Attention, _Attention, _FeedForward]:
    own, source, joined = layer.self_attn, layer.encoder_attn, layer.self_attn.q_proj
    if not isinstance(joined, JoinedPart):
        raise TypeError("projections that are not joined")

    def around(norm: nn.Module) -> tuple[Layer, Layer]:
        """What is done to the input of a part and to its output."""
        return (norm.forward, _same) if _NORMALIZES_INPUT[type(layer)] else (_same, norm.forward)

    # `forward` itself: nothing hooks into these, and nn.Module's look for hooks takes as long as they do for one row.
    before, after = around(layer.self_attn_layer_norm)
    to_own = _Attention(before, joined.joined.linear.forward, own, own.out_proj.forward, after)
    before, after = around(layer.encoder_attn_layer_norm)
    to_source = _Attention(before, source.q_proj.forward, source, source.out_proj.forward, after)
    before, after = around(layer.final_layer_norm)
    forward = _FeedForward(before, layer.fc1.forward, layer.activation_fn, layer.fc2.forward, after)
    return to_own, to_source, forward


def _same(x: Tensor) -> Tensor:
    return x


def direct_decoder(model: PreTrainedModel) -> DirectDecoder | None:
    """A model's decoder, run directly; None where its family is not known here."""
    if not model.config.is_encoder_decoder:
        return None
    try:
        return DirectDecoder(model.get_decoder())
    except (AttributeError, IndexError, TypeError):
        return None
