"""How a model is run in slots: what its layers keep, its masks and its inputs; and whether it can be run so at all.

Found at load by running the model on a few tokens, once as it is and once in slots: where the two differ, or where a
cache is of a kind not known here, the model's requests are worked on one by one. Knows nothing of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..capture.attention_function import record_to, separating
from ..capture.attention_layers import AttentionLayers, first_token
from ..layers.lm_head import ArgmaxQuery, LMHead, find_lm_head
from ..transfer import int_tensor
from ..transformers_versions import cache_argument, cache_of
from .bart_backend import DirectDecoder, DirectEncoder, UnknownLayerError
from .bart_cpu_backend import TOGETHER, ProgrammedDecoder, ProgrammedSources
from .batch_invariance import separate_activations
from .kv_cache import KVCache, KVShape, bytes_per_slot
from .row_positions import take_rows

log = logging.getLogger(__name__)

Projection = Callable[[Tensor], tuple[Tensor, Tensor]]

# What code raises that is given a model it was not written for.
_FAULTS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)

# Tokens of sources, padding included, that an encoder reads at once: bounds the memory of those who come together.
MOST_TOGETHER = 8192

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


class UnknownCacheError(Exception):
    """The model keeps something other than keys and values of all positions."""


class TransformersBackend:
    """A model in slots."""

    def __init__(self, model: PreTrainedModel, source_length: int, length: int, *, is_invariant: bool = False) -> None:
        """For sources and targets of at most so many tokens. Raises UnknownCacheError.

        `is_invariant` promises that no row of a batch changes another's numbers, not even where torch computes them.
        """
        self._model: Any = model
        self._cache_argument = cache_argument(model)
        self._is_invariant = is_invariant
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._length, self._source_length = length, source_length
        text: Any = model.config.get_text_config(decoder=True)
        self._layer_types = set(getattr(text, "layer_types", None) or ())
        self._window: int | None = getattr(text, "sliding_window", None)
        if not self._layer_types <= _KNOWN_LAYERS:
            raise UnknownCacheError(f"layers of {', '.join(sorted(self._layer_types - _KNOWN_LAYERS))}")
        self.is_compiled = False
        self.lm_head: LMHead | None = None  # None: the model's last layer is not run apart
        # What runs sources, and steps where the last layer is apart; None: the model's own code.
        self.encoder: DirectEncoder | None = None
        self.sources: ProgrammedSources | None = None
        self.decoder: DirectDecoder | ProgrammedDecoder | None = None
        self._source_projections = _source_projections(model) if self._is_encoder_decoder else []
        self._own, self._source = self._shapes()
        # Stands for what an encoder gave where its keys and values are kept: only its shape is looked at.
        self._unread = torch.zeros(1, 1, 1, dtype=model.dtype, device=model.device)

    @property
    def lengths(self) -> tuple[int, int]:
        """The most positions of a slot's own and of its source's, 0 where there is none."""
        return self._length, self._source_length if self._is_encoder_decoder else 0

    @property
    def writes_selected_rows(self) -> bool:
        """Whether keeping some rows of a batch takes no longer than keeping all."""
        return isinstance(self.decoder, ProgrammedDecoder)

    @property
    def max_prefill_tokens(self) -> int:
        """Tokens of sources, padding included, that are read at once. More are read part by part."""
        return MOST_TOGETHER if self.sources is None else TOGETHER

    @property
    def bytes_per_slot(self) -> int:
        """How much memory one slot takes."""
        return self.cache_bytes(self._length, self._source_length)

    def cache_bytes(self, length: int, source_length: int) -> int:
        """How much memory the keys and values of a sequence take, of so many positions of target and source."""
        return bytes_per_slot(self._own, length, self._source, source_length, self._model.dtype)

    def new_kv_cache(self, count: int, length: int | None = None) -> KVCache:
        """Room for so many sequences."""
        return KVCache(
            count,
            self._own,
            length or self._length,
            self._source,
            length or self._source_length,
            self._model.dtype,
            self._model.device,
            heads_together=isinstance(self.decoder, ProgrammedDecoder),
        )

    def encode(self, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """What the encoder makes of sources, `[B, S]` with so much of each that is no padding: `[B, S, width]`."""
        mask: Tensor | None = None
        if min(lengths) < ids.shape[1]:
            mask = torch.arange(ids.shape[1], device=ids.device) < int_tensor(
                [[length] for length in lengths], ids.device
            )
        with record_to(None, padded=mask is not None):
            if self.encoder is not None:
                return self.encoder.read(ids, mask)
            inputs = {} if mask is None else {"attention_mask": mask.long()}
            return self._model.get_encoder()(input_ids=ids, **inputs).last_hidden_state

    def prefill_sources(self, ids: Tensor, lengths: Mapping[int, int], slots: KVCache) -> None:
        """Reads sources, `[B, S]`, and keeps what cross-attention makes of them. `lengths` as in `store_sources`."""
        sources = self.sources
        if sources is None and not self._is_invariant:
            self.store_sources(self.encode(ids, [*lengths.values()]), lengths, slots)
            return
        # Each in its own way, whoever comes with it.
        short: dict[int, int] = {}
        for row, (slot, length) in enumerate(lengths.items()):
            if sources is not None and sources.takes(length):
                short[row] = slot
            else:
                self.store_sources(self.encode(ids[row : row + 1, :length], [length]), {slot: length}, slots)
        if sources is not None and short:
            some = {slot: lengths[slot] for slot in short.values()}
            sources.read(ids[[*short], : max(some.values())], some, slots)

    def store_sources(self, hidden: Tensor, lengths: Mapping[int, int], slots: KVCache) -> None:
        """Keeps the keys and values that cross-attention makes of what an encoder gave, `[B, S, width]`.

        `lengths` says of each row, in order, which slot it is for, and how much of it is no padding.
        """
        for layer, project in enumerate(self._source_projections):
            keys, values = project(hidden)
            for row, (slot, length) in enumerate(lengths.items()):
                slots.write_source(slot, layer, keys[row, :, :length], values[row, :, :length])
        for slot, length in lengths.items():
            slots.source_lengths[slot] = length

    def compile(self, backend: str = "inductor") -> None:
        """Has torch.compile make one graph of a step. For steps of all slots and positions alone, so of one shape.

        The first step takes it a minute or so. It raises where a model's code cannot be made one graph.
        """
        self.is_compiled, self.decoder = True, None  # what is compiled is the model's own code
        if self.lm_head is not None:  # its layer is a part of the graph
            self.lm_head.detach()
            self.lm_head = None
        self._forward = torch.compile(self._forward, fullgraph=True, dynamic=False, backend=backend)

    def decode(self, tokens: Tensor, slots: KVCache, sought: ArgmaxQuery | None = None) -> Tensor:
        """One token for each slot that has begun a step: tokens `[n, 1]`.

        Returns what the vocabulary takes, `[n, width]`; without one, logits `[n, lm_head]`. What is `sought` in the
        vocabulary has been found then.
        """
        if isinstance(self.decoder, ProgrammedDecoder):
            return self.decoder.step(tokens, slots, sought)
        slots.bind_views()
        with self._separated(slots):
            if self.lm_head is None:
                return self._forward(tokens, slots)
            if self.decoder is not None:
                made = self.decoder.step(tokens, slots)
            else:
                with self.lm_head.skipping():
                    self._forward(tokens, slots)
                made = self.lm_head.pop_hidden()[:, -1]
        if sought is not None:
            sought.search(made, sought.excluded)
        return made

    def _separated(self, slots: KVCache) -> AbstractContextManager[None]:
        """Keeps the rows of a step apart where that is promised."""
        return separating(slots.step_lengths()) if self._is_invariant else nullcontext()

    def _forward(self, tokens: Tensor, slots: KVCache) -> Tensor:
        inputs = self._inputs(tokens, slots)
        if self._is_encoder_decoder:
            inputs |= {"decoder_attention_mask": slots.own_mask(), "attention_mask": slots.source_mask()}
        else:
            inputs |= {"attention_mask": self._masks(slots), "position_ids": slots.own.get_seq_length()}
        return self._model(**inputs).logits[:, -1]

    def prefill(self, ids: Tensor, slots: KVCache) -> None:
        """Reads tokens `[1, count]` of the slot that has begun a reading of so many."""
        inputs = self._inputs(ids, slots)
        if not self._is_encoder_decoder:
            begin = slots.own.get_seq_length()
            inputs["position_ids"] = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        if self.lm_head is None:
            self._model(**inputs)
            return
        with self.lm_head.skipping():
            self._model(**inputs)
        self.lm_head.pop_hidden()  # nobody asks for scores of what is there

    def _inputs(self, ids: Tensor, slots: KVCache) -> dict[str, Any]:
        """What a step and a reading have in common."""
        inputs: dict[str, Any] = {self._cache_argument: slots.cache, "use_cache": True}
        if not self._is_encoder_decoder:
            return inputs | {"input_ids": ids}
        unread = self._unread.expand(len(ids), slots.source_length, self._model.config.hidden_size)
        return inputs | {"decoder_input_ids": ids, "encoder_outputs": (unread,)}

    def _masks(self, slots: KVCache) -> Any:
        """A step's masks as a decoder-only model takes them."""
        whole = slots.own_mask()
        if self._window is None or self._layer_types == {"full_attention"}:
            return whole
        sliding = slots.own_mask(self._window)
        if not self._layer_types:
            return sliding
        return {"full_attention": whole, "sliding_attention": sliding}

    def _shapes(self) -> tuple[list[KVShape], list[KVShape]]:
        """What each layer keeps, from a cache that the model has made itself."""
        ids = torch.full((1, 2), first_token(self._model), device=self._model.device)
        with record_to(None, padded=False), torch.inference_mode():
            if self._is_encoder_decoder:
                cache = cache_of(self._model(input_ids=ids, decoder_input_ids=ids[:, :1], use_cache=True))
                return _shapes_of(cache.self_attention_cache), _shapes_of(cache.cross_attention_cache)
            return _shapes_of(cache_of(self._model(input_ids=ids, use_cache=True))), []


def _shapes_of(cache: Any) -> list[KVShape]:
    shapes: list[KVShape] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or keys.dim() != 4:
            raise UnknownCacheError(f"a cache of {type(layer).__name__}")
        shapes.append(KVShape(keys.shape[1], keys.shape[3], values.shape[3]))
    return shapes


def _source_projections(model: nn.Module) -> list[Projection]:
    """What makes a source's keys and values in each decoder layer, `[B, S, D]` to twice `[B, heads, S, width]`."""
    modules: dict[int, nn.Module] = {}
    for module in model.modules():
        site = getattr(module, "sidelight_site", None)
        if site is not None and site.kind == "cross":
            modules[site.layer] = module
    return [_projection(module) for _, module in sorted(modules.items())]


def _projection(module: Any) -> Projection:
    for key_name, value_name, width_name in (("k_proj", "v_proj", "head_dim"), ("k", "v", "key_value_proj_dim")):
        key, value, width = (getattr(module, name, None) for name in (key_name, value_name, width_name))
        if isinstance(key, nn.Module) and isinstance(value, nn.Module) and width is not None:
            break
    else:
        raise UnknownCacheError(f"cross-attention of {type(module).__name__}")
    key_of, value_of, head_width = key, value, int(width)

    def project(hidden: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*hidden.shape[:2], -1, head_width)
        return key_of(hidden).view(shape).transpose(1, 2), value_of(hidden).view(shape).transpose(1, 2)

    return project


def select_backend(
    model: PreTrainedModel,
    attention_layers: AttentionLayers,
    source_length: int,
    length: int,
    *,
    is_exact: bool = True,
    is_invariant: bool = False,
) -> TransformersBackend | None:
    """How a model is run in slots, for sources and targets of at most so many tokens; None if it cannot be.

    `is_exact` says whether two ways to the same logits are as near as float32 has it; `is_invariant` as in
    `TransformersBackend`.
    """
    if not attention_layers.captures_rows:
        return None
    take_rows(model)
    if is_invariant:
        separate_activations(model)
    tolerance = 1e-4 if is_exact else 5e-2
    try:
        backend = TransformersBackend(model, source_length, length, is_invariant=is_invariant)
        problem = _difference(model, backend, tolerance)
    except (UnknownCacheError, *_FAULTS) as error:
        problem = str(error) or type(error).__name__
    else:
        if problem is None:
            backend.lm_head = find_lm_head(model)
            _run_directly(model, backend, tolerance)
            return backend
    log.warning("requests of %s are worked on one by one: %s", model.config.model_type, problem)
    return None


def _run_directly(model: Any, backend: TransformersBackend, tolerance: float) -> None:
    """Has a layout run the model's encoder and decoder without the model's own code, where that gives the same."""
    if not model.config.is_encoder_decoder or backend.lm_head is None:
        return
    problem: str | None = ""
    for set_ in (_set_programs, _set_direct):
        try:
            set_(model, backend)
            problem = _difference(model, backend, tolerance)
        except UnknownLayerError:
            problem = ""
        except _FAULTS as error:
            problem = str(error) or type(error).__name__
        if problem is None:
            return
        backend.encoder = backend.sources = backend.decoder = None
        if problem and set_ is _set_programs:
            log.warning("%s is not run as programs: %s", model.config.model_type, problem)
    if problem:
        log.warning("%s is run by its own code: %s", model.config.model_type, problem)


def _set_programs(model: Any, backend: TransformersBackend) -> None:
    backend.decoder = ProgrammedDecoder(model.get_decoder())
    backend.sources = ProgrammedSources(model)
    backend.encoder = DirectEncoder(model.get_encoder())


def _set_direct(model: Any, backend: TransformersBackend) -> None:
    backend.encoder, backend.decoder = DirectEncoder(model.get_encoder()), DirectDecoder(model.get_decoder())


@torch.inference_mode()
def _difference(model: Any, backend: TransformersBackend, tolerance: float) -> str | None:
    """What is different between logits in slots of different lengths and those of the model alone; None if nothing."""
    token = first_token(model)
    targets = [[token, token + 1, token + 2], [token + 1]]
    sources = [[token, token + 3], [token + 2, token + 1, token, token + 3]]
    is_encoder_decoder = bool(model.config.is_encoder_decoder)
    longest = max(map(len, sources)) if is_encoder_decoder else 0
    slots = backend.new_kv_cache(2, 8)
    expected: list[Tensor] = []
    with record_to(None, padded=False):
        for slot, (target, source) in enumerate(zip(targets, sources, strict=True)):
            ids, source_ids = (torch.tensor([each], device=model.device) for each in (target, source))
            source_length = len(source) if is_encoder_decoder else 0
            if is_encoder_decoder:
                expected.append(model(input_ids=source_ids, decoder_input_ids=ids, use_cache=False).logits[0, -1])
                if not slot:  # the sources of all slots
                    padded = [[*each, *[token] * (longest - len(each))] for each in sources]
                    lengths = dict(enumerate(map(len, sources)))
                    backend.prefill_sources(torch.tensor(padded, device=model.device), lengths, slots)
            else:
                expected.append(model(input_ids=ids, use_cache=False).logits[0, -1])
            if len(target) > 1:
                slots.begin_prefill(slot, 0, len(target) - 1, source_length)
                backend.prefill(ids[:, :-1], slots)
            slots.own.lengths[slot] = len(target) - 1
        slots.begin_decode(slice(0, 2), 3, longest)
        tokens = torch.tensor([[target[-1]] for target in targets], device=model.device)
        made = backend.decode(tokens, slots)
        logits = made if backend.lm_head is None else backend.lm_head.logits(made)
    apart = max(float((ours - theirs).abs().max()) for ours, theirs in zip(logits, expected, strict=True))
    size = max(1.0, *(float(theirs.abs().max()) for theirs in expected))
    return None if apart <= tolerance * size else f"logits in slots are {apart:.1e} from those alone"
