"""A backend for any model family: the forward passes of transformers' own modules.

The KV cache stands in for transformers' cache, with masks for the lengths of the slots. The other backends derive from
`TransformersBackend` for what they do not replace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ..capture import (
    attend_per_row,
    end_behind,
    first_token,
    layer_key_of,
    record_to,
    source_inputs,
    trial_inputs,
)
from ..layers import ArgmaxQuery, LMHead
from ..transfer import int_tensor
from ..transformers_versions import cache_argument, cache_of
from .backend import BackendConfig, TargetBatch, UnsupportedModelError
from .kv_cache import KVCache, KVLayout, KVShape, bytes_per_slot

# Source tokens, padding included, that an encoder reads at once. Bounds the memory of sources that arrive together.
MAX_PREFILL_TOKENS = 8192

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}

# Maps the encoder's output [B, S, width] to keys and values of one layer's cross-attention, [B, heads, S, head width].
_Projection = Callable[[Tensor], tuple[Tensor, Tensor]]


class TransformersBackend:
    """Runs a model by transformers' modules. A subclass replaces `_encode`, `_decode`, or a public method."""

    is_compiled: ClassVar[bool] = False
    writes_selected_rows: ClassVar[bool] = False
    kv_layout: ClassVar[KVLayout] = "head_major"  # of the KV cache: as torch multiplies it

    def __init__(self, model: PreTrainedModel, config: BackendConfig, lm_head: LMHead | None) -> None:
        """As `Backend` describes it. Raises UnsupportedModelError for a cache that is not keys and values."""
        self.lm_head = lm_head
        self._model: Any = model
        self._config = config
        self._cache_argument = cache_argument(model)
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        text: Any = model.config.get_text_config(decoder=True)
        self._layer_types: set[str] = set(getattr(text, "layer_types", None) or ())
        self._window: int | None = getattr(text, "sliding_window", None)
        if not self._layer_types <= _KNOWN_LAYERS:
            raise UnsupportedModelError(f"layers of {', '.join(sorted(self._layer_types - _KNOWN_LAYERS))}")
        self._source_projections = _source_projections(model) if self._is_encoder_decoder else []
        self._source_width = int(model.get_encoder().config.hidden_size) if self._is_encoder_decoder else 0
        self._own_shapes, self._source_shapes = _kv_shapes(model)
        forward_parameters = inspect.signature(type(model).forward).parameters
        self._takes_decoder_positions = "decoder_position_ids" in forward_parameters
        # A placeholder for the encoder's output. transformers reads only its shape, since the keys and values of
        # cross-attention are in the cache.
        self._encoder_placeholder = torch.zeros(1, 1, 1, dtype=model.dtype, device=model.device)

    @classmethod
    def supports(cls, model: PreTrainedModel) -> bool:  # noqa: ARG003
        """Every model may run by its own modules; the constructor looks at its cache."""
        return True

    @classmethod
    def reads_panels(cls, model: PreTrainedModel) -> bool:  # noqa: ARG003
        """The modules of transformers call linear layers, however the weights are packed."""
        return False

    # ---- sizes ------------------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> tuple[int, int]:
        """The number of positions of a slot for the target and for the source; 0 for a model without an encoder."""
        return self._config.max_target_tokens, self._config.max_source_tokens if self._is_encoder_decoder else 0

    @property
    def max_prefill_tokens(self) -> int:
        """How many source tokens, padding included, are encoded at once."""
        return MAX_PREFILL_TOKENS

    @property
    def is_batch_invariant(self) -> bool:
        """Whether each row of a batch has the bits that it has when it is computed alone."""
        return self._config.is_batch_invariant

    @property
    def bytes_per_slot(self) -> int:
        """The size of one slot of the KV cache."""
        return self.cache_bytes(self._config.max_target_tokens, self._config.max_source_tokens)

    def cache_bytes(self, length: int, source_length: int) -> int:
        """The size of the keys and values of a sequence with `length` target and `source_length` source positions."""
        return bytes_per_slot(self._own_shapes, length, self._source_shapes, source_length, self._model.dtype)

    def new_kv_cache(self, count: int, length: int | None = None) -> KVCache:
        """A KV cache of `count` slots with `length` positions of target and source; None: as many as `lengths`."""
        return KVCache(
            count,
            self._own_shapes,
            length or self._config.max_target_tokens,
            self._source_shapes,
            length or self._config.max_source_tokens,
            self._model.dtype,
            self._model.device,
            layout=self.kv_layout,
        )

    # ---- sources ----------------------------------------------------------------------------------------------------

    def encode(self, sources: Tensor, lengths: Sequence[int]) -> Tensor:
        """The encoder's output `[B, S, width]`, as `Backend` describes it. Features of recordings have no padding."""
        mask = _source_mask(sources, lengths)
        with record_to(None, padded=mask is not None):
            return self._encode(sources, mask)

    def _encode(self, sources: Tensor, mask: Tensor | None) -> Tensor:
        """The encoder's output `[B, S, width]`. `mask`, bool `[B, S]`, is False at padding; None: no padding."""
        inputs = source_inputs(sources) | ({} if mask is None else {"attention_mask": mask.long()})
        return self._model.get_encoder()(**inputs).last_hidden_state

    def prefill_sources(self, sources: Tensor, lengths: Mapping[int, int], cache: KVCache) -> None:
        """Encode sources and store the keys and values of cross-attention, as `Backend` describes it."""
        if not self._config.is_batch_invariant:
            self.store_sources(self.encode(sources, [*lengths.values()]), lengths, cache)
            return
        for row, (slot, length) in enumerate(lengths.items()):
            source = sources[row : row + 1]
            self._prefill_source(source[:, :length] if source.dim() == 2 else source, length, slot, cache)

    def _prefill_source(self, source: Tensor, length: int, slot: int, cache: KVCache) -> None:
        """Encode one source without padding, so that its numbers do not depend on other sources."""
        self.store_sources(self.encode(source, [length]), {slot: length}, cache)

    def store_sources(self, hidden: Tensor, lengths: Mapping[int, int], cache: KVCache) -> None:
        """Store the keys and values of cross-attention for the encoder's output `[B, S, width]`.

        `lengths` maps the slot of each row, in the order of the rows, to the number of tokens that are no padding.
        """
        for layer, project in enumerate(self._source_projections):
            keys, values = project(hidden)
            for row, (slot, length) in enumerate(lengths.items()):
                cache.write_source(slot, layer, keys[row, :, :length], values[row, :, :length])
        for slot, length in lengths.items():
            cache.source_lengths[slot] = length

    # ---- prompts and steps ------------------------------------------------------------------------------------------

    def prefill(self, ids: Tensor, cache: KVCache) -> None:
        """Read tokens `[1, count]` into the slot, and at the positions, that `KVCache.begin_prefill` named."""
        inputs = self._inputs(ids, cache)
        if not self._is_encoder_decoder:
            begin = cache.own.get_seq_length()
            inputs["position_ids"] = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        if self.lm_head is None:
            self._model(**inputs)
        else:
            with self.lm_head.skipping():  # a prompt needs no logits
                self._model(**inputs)
            self.lm_head.pop_hidden()
        cache.end_prefill()

    def decode(self, tokens: Tensor, cache: KVCache, query: ArgmaxQuery | None = None) -> Tensor:
        """Run one token `[n, 1]` for each slot that `KVCache.begin_decode` named, as `Backend` describes it."""
        cache.bind_views()
        with self._isolated_rows(cache):
            output = self._decode(tokens, cache)
        if query is not None:
            query.search(output, query.masked)
        return output

    def read_targets(self, batch: TargetBatch) -> Tensor | None:
        """Run encoder and decoder over whole sequences, as `Backend` describes it."""
        kept = _new_cache(batch)
        inputs: dict[str, Any] = {"use_cache": kept is not None, self._cache_argument: kept}
        if batch.sources is None:
            inputs["input_ids"] = batch.targets
        else:
            hidden = self.encode(batch.sources, batch.source_lengths)
            inputs |= {"decoder_input_ids": batch.targets, "encoder_outputs": BaseModelOutput(hidden)}
            mask = _source_mask(batch.sources, batch.source_lengths)
            if mask is not None:
                inputs["attention_mask"] = mask.long()
        output: Tensor | None = None
        with end_behind(batch.last_attention):
            output = self._read(inputs)
        _keep(kept, batch)
        return output

    def _read(self, inputs: dict[str, Any]) -> Tensor:
        """The output of a pass over whole sequences, of the kind that `decode` returns."""
        if self.lm_head is None:
            return self._model(**inputs).logits
        with self.lm_head.skipping():
            self._model(**inputs)
        return self.lm_head.pop_hidden()

    def _decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The input of the LM head `[n, width]`, or, without an LM head, logits `[n, vocabulary]`."""
        if self.lm_head is None:
            return self._forward(tokens, cache)
        with self.lm_head.skipping():
            self._forward(tokens, cache)
        return self.lm_head.pop_hidden()[:, -1]

    def _isolated_rows(self, cache: KVCache) -> AbstractContextManager[None]:
        """Keep the rows of a step apart if the config asks for batch invariance (see `batch_invariance`)."""
        return attend_per_row(cache.step_lengths()) if self._config.is_batch_invariant else nullcontext()

    def _forward(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """The logits `[n, vocabulary]` of the model's own forward pass."""
        inputs = self._inputs(tokens, cache)
        masks, positions = _own_masks(cache, self._window, self._layer_types), cache.own.get_seq_length()
        if self._is_encoder_decoder:
            inputs |= {"decoder_attention_mask": masks, "attention_mask": cache.source_mask()}
            if self._takes_decoder_positions:
                inputs["decoder_position_ids"] = positions
        else:
            inputs |= {"attention_mask": masks, "position_ids": positions}
        return self._model(**inputs).logits[:, -1]

    def _inputs(self, ids: Tensor, cache: KVCache) -> dict[str, Any]:
        """The arguments that a step and a prefill share."""
        inputs: dict[str, Any] = {self._cache_argument: cache.cache, "use_cache": True}
        if not self._is_encoder_decoder:
            return inputs | {"input_ids": ids}
        encoded = self._encoder_placeholder.expand(len(ids), cache.source_length, self._source_width)
        return inputs | {"decoder_input_ids": ids, "encoder_outputs": BaseModelOutput(encoded)}


def _new_cache(batch: TargetBatch) -> Any:
    """A cache of transformers for the keys and values of a batch; None for a batch without slots."""
    if batch.cache is None:
        return None
    return DynamicCache() if batch.sources is None else EncoderDecoderCache(DynamicCache(), DynamicCache())


def _keep(kept: Any, batch: TargetBatch) -> None:
    """Store the keys and values of a batch, which transformers' cache has, in the slots of the batch."""
    cache = batch.cache
    if cache is None:
        return
    own = kept if batch.sources is None else kept.self_attention_cache
    sources = () if batch.sources is None else kept.cross_attention_cache.layers
    parts = ((own.layers, batch.lengths, cache.write_target), (sources, batch.source_lengths, cache.write_source))
    for layers, lengths, write in parts:
        for number, layer in enumerate(layers):
            for slot, keys, values, length in zip(batch.slots, layer.keys, layer.values, lengths, strict=True):
                write(slot, number, keys[:, :length], values[:, :length])


def _own_masks(cache: KVCache, window: int | None, layer_types: set[str]) -> Any:
    """The masks of a step for the tokens that the decoder has read, as transformers' models take them."""
    full = cache.own_mask()
    if window is None or layer_types == {"full_attention"}:
        return full
    sliding = cache.own_mask(window)
    if not layer_types:
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def _kv_shapes(model: Any) -> tuple[list[KVShape], list[KVShape]]:
    """What each layer keeps of target and source, from a cache that the model makes itself."""
    ids = torch.full((1, 2), first_token(model), device=model.device)
    with record_to(None, padded=False), torch.inference_mode():
        if model.config.is_encoder_decoder:
            source = trial_inputs(model, ids)
            cache = cache_of(model(**source, decoder_input_ids=ids[:, :1], use_cache=True))
            return _shapes_of(cache.self_attention_cache), _shapes_of(cache.cross_attention_cache)
        return _shapes_of(cache_of(model(input_ids=ids, use_cache=True))), []


def _source_mask(sources: Tensor, lengths: Sequence[int]) -> Tensor | None:
    """Which source tokens are no padding, bool `[B, S]`; None where there is no padding."""
    if sources.dim() != 2 or min(lengths) == sources.shape[1]:
        return None
    ends = int_tensor([[length] for length in lengths], sources.device)
    return torch.arange(sources.shape[1], device=sources.device) < ends


def _shapes_of(cache: Any) -> list[KVShape]:
    shapes: list[KVShape] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or keys.dim() != 4:
            raise UnsupportedModelError(f"a cache of {type(layer).__name__}")
        shapes.append(KVShape(keys.shape[1], keys.shape[3], values.shape[3]))
    return shapes


def _source_projections(model: nn.Module) -> list[_Projection]:
    """The projections of keys and values in the cross-attention of each decoder layer.

    `find_attention_layers` has given each attention module its `LayerKey`.
    """
    modules: dict[int, nn.Module] = {}
    for module in model.modules():
        key = layer_key_of(module)
        if key is not None and key.kind == "cross":
            modules[key.layer] = module
    return [_projection(module) for _, module in sorted(modules.items())]


def _projection(module: Any) -> _Projection:
    for key_name, value_name, width_name in (("k_proj", "v_proj", "head_dim"), ("k", "v", "key_value_proj_dim")):
        key, value, width = (getattr(module, name, None) for name in (key_name, value_name, width_name))
        if isinstance(key, nn.Module) and isinstance(value, nn.Module) and width is not None:
            break
    else:
        raise UnsupportedModelError(f"cross-attention of {type(module).__name__}")
    project_key, project_value, head_width = key, value, int(width)

    def project(hidden: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*hidden.shape[:2], -1, head_width)
        return project_key(hidden).view(shape).transpose(1, 2), project_value(hidden).view(shape).transpose(1, 2)

    return project
