"""A backend for BART-style encoder-decoders, layer by layer, without the overhead of transformers' modules.

It serves bfloat16, GPUs, and CPUs without AVX2. Prompts run by transformers' modules. `bart_modules` says which
families are BART-style and why they are run so.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..layers import LMHead
from .backend import BackendConfig
from .bart_modules import (
    BartEncoder,
    Embedding,
    check_lm_head,
    cross_attention_of,
    feed_forward_of,
    final_norm_of,
    heads_of,
    is_bart_style,
    self_attention_of,
)
from .kv_cache import KVCache
from .transformers_backend import TransformersBackend


class BartBackend(TransformersBackend):
    """Runs the encoder and the steps of a BART-style model layer by layer."""

    def __init__(self, model: PreTrainedModel, config: BackendConfig, lm_head: LMHead | None) -> None:
        """As `Backend` describes it."""
        check_lm_head(lm_head)
        super().__init__(model, config, lm_head)
        self._encoder = BartEncoder(model.get_encoder())
        self._decoder = _BartDecoder(model.get_decoder())

    @classmethod
    def supports(cls, model: PreTrainedModel) -> bool:
        """Whether all layers are of families that `bart_modules` knows."""
        return is_bart_style(model)

    def _encode(self, sources: Tensor, mask: Tensor | None) -> Tensor:
        return self._encoder.encode(sources, mask)

    def _decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        return self._decoder.decode(tokens, cache)


class _BartDecoder:
    """The decoder of a BART-style model, for steps of one token of each sequence."""

    def __init__(self, decoder: Any) -> None:
        """`decoder` is the model's own. Raises UnsupportedModelError for a part that `bart_modules` does not know."""
        self._embedding = Embedding(decoder)
        self._layers = [
            (self_attention_of(layer), cross_attention_of(layer), feed_forward_of(layer)) for layer in decoder.layers
        ]
        self._heads, self._scaling = heads_of(decoder)
        self._final_norm = final_norm_of(decoder)

    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The output `[n, width]` for one token `[n, 1]` of each slot that has begun a step."""
        hidden = self._embedding.embed_step(tokens, cache.own.get_seq_length())
        own_mask, source_mask = cache.step_masks()
        for layer, (own, cross, feed_forward) in enumerate(self._layers):
            query, key, value = own.project(own.before(hidden)).view(len(tokens), 3, self._heads, 1, -1).unbind(1)
            key, value = cache.own.update(key, value, layer)
            hidden = own.after(hidden + own.attend(query, key, value, own_mask, self._scaling))
            query = cross.project(cross.before(hidden)).view(len(tokens), self._heads, 1, -1)
            key, value = cache.source(layer)
            hidden = cross.after(hidden + cross.attend(query, key, value, source_mask, self._scaling))
            hidden = feed_forward.run(hidden)
        return self._final_norm(hidden)[:, 0]
