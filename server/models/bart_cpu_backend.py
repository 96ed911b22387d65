"""BART and its kin on a CPU as programs: a step of all slots, and a reading of sources (see `kernels.cpu.program`).

The same layers and numbers as in `bart_backend`, without a call of Python's between them, so that the threads of the
service go on meanwhile. `transformers_backend` compares both at load with the model's own logits, as everything that
takes the place of the model's own code. Knows layers, linear layers in panels, and slots; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation

from ...kernels.cpu.program import (
    MOST_POSITIONS,
    MOST_WIDTH,
    Activation,
    Attention,
    PackedWeight,
    Program,
    is_supported,
    keep,
)
from ..capture.attention_function import LayerKey, RecordTarget, targets_of_step, write_step
from ..layers.fused_qkv import FusedSlice
from ..layers.lm_head import ArgmaxQuery
from ..layers.packed_linear import PackedLinear
from .bart_backend import Embedding, UnknownLayerError, check_layers, heads_of, normalizes_input
from .kv_cache import KVCache

_ACTIVATIONS: dict[type, Activation] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    GELUActivation: "gelu",
}

# How many tokens of sources, padding included, a program reads at once: few enough to stay in a core's cache.
TOGETHER = 512


def is_programmed(model: Any) -> bool:
    """Whether a model may run as programs, once its weights are in panels."""
    if not model.config.is_encoder_decoder:
        return False
    try:
        for stack in (model.get_encoder(), model.get_decoder()):
            _check(stack)
    except UnknownLayerError:
        return False
    return True


def _check(stack: Any) -> None:
    if getattr(stack, "dtype", None) != torch.float32 or stack.device.type != "cpu" or not is_supported():
        raise UnknownLayerError("programs are for CPUs with AVX2, and for float32 and int8")
    check_layers(stack)
    heads, _ = heads_of(stack)
    if stack.config.d_model // heads > MOST_WIDTH:
        raise UnknownLayerError("heads too wide for programs")


class ProgrammedDecoder:
    """The decoder of a model, for steps of one token of each sequence. For one thread."""

    def __init__(self, decoder: Any) -> None:
        """`decoder` is a family's own. Raises UnknownLayerError where it does not run as a program."""
        _check(decoder)
        self._decoder = decoder
        self._embedding = Embedding(decoder)
        self._heads, self._scaling = heads_of(decoder)
        self._layers = [_DecoderLayer(layer) for layer in decoder.layers]
        self._made: WeakKeyDictionary[KVCache, _Step] = WeakKeyDictionary()

    def step(self, tokens: Tensor, slots: KVCache, sought: ArgmaxQuery | None = None) -> Tensor:
        """One token for each slot that has begun a step: `[n, 1]`. Returns what it makes of them, `[n, width]`.

        That stays as it is until the next step. What is `sought` among its scores is found in the same run.
        """
        made = self._made.get(slots)
        if made is None:
            made = self._made[slots] = self._make(slots)
        first, count, length, source_length = slots.stepping
        then: list[NDArray[np.int64]] = []
        others: list[tuple[RecordTarget, Tensor]] = []
        for site, shares in made.shares:
            shown = source_length if site.kind == "cross" else length
            for target in targets_of_step(site, (count, self._heads, 1, shown), tokens.device):
                if _is_kept_as_it_is(target, shown):
                    column, is_source = target.part.column, site.kind == "cross"
                    then.append(keep(shares, target.result.values, column, target.rows, is_source=is_source)[None])
                else:
                    others.append((target, shares[:count, :, None, :shown]))
        out = made.out[:count]
        if sought is not None:
            then.append(sought.search.prepare(out, sought.excluded))
        made.program.run(
            count,
            x=tokens,
            first=first,
            shown_own=length,
            shown_source=source_length,
            then=np.concatenate(then) if then else None,
        )
        for target, shares in others:
            write_step([target], shares)
        return out

    def _make(self, slots: KVCache) -> _Step:
        """Lays out a step for some slots, whose keys and values stay where they are."""
        count = len(slots.own.lengths)
        program = Program(count)
        stack = _Stack(program, self._decoder)
        self._embed(program, slots, stack.hidden)
        projected = program.room(3 * stack.width)
        shares: list[tuple[LayerKey, Tensor]] = []

        def attend(query: Tensor, attention: Attention, site: LayerKey) -> None:
            shares.append((site, torch.zeros(count, self._heads, attention.keys.shape[2])))
            program.attend(query, attention, shares[-1][1], stack.mixed)

        for place, layer in enumerate(self._layers):
            own, source = slots.own.slot_layers[place], slots.source_layers[place]
            program.product(stack.before(layer.own_norm), layer.project, projected)
            query, *new = projected.split(stack.width, 1)
            keys = Attention(own.all_keys, own.all_values, slots.own.lengths, self._scaling, (new[0], new[1]))
            attend(query, keys, layer.own_site)
            stack.after(layer.own_norm, layer.own_out)
            program.product(stack.before(layer.source_norm), layer.source_query, query)
            keys = Attention(source.all_keys, source.all_values, slots.source_lengths, self._scaling)
            attend(query, keys, layer.source_site)
            stack.after(layer.source_norm, layer.source_out)
            stack.feed(layer.forward)
        return _Step(program, stack.end(), shares)

    def _embed(self, program: Program, slots: KVCache, out: Tensor) -> None:
        """What stands for the tokens of a step, whose positions are their slots' lengths."""
        table, embedding = self._embedding.table, self._embedding
        # What the model gives each position: one table for most tokens, and for padding another (M2M100).
        lengths = torch.arange(slots.own.slot_layers[0].get_max_length())[:, None]
        padding = table.padding_idx
        some = 0 if padding != 0 else 1
        positions = embedding.positions(torch.full_like(lengths, some), lengths)[:, 0].float().contiguous()
        other: tuple[int, Tensor] | None = None
        if padding is not None:
            of_padding = embedding.positions(torch.full_like(lengths, padding), lengths)[:, 0].float().contiguous()
            other = None if torch.equal(of_padding, positions) else (padding, of_padding)
        # Some families' tables multiply what they give.
        scale = float(getattr(table, "embed_scale", 1.0)) * embedding.scale
        ids = torch.zeros(len(slots.own.lengths), 1, dtype=torch.int64)  # stands for those of a step
        program.embed(ids, table.weight.detach(), scale, positions, slots.own.lengths, out, other=other)
        if embedding.norm is not None:
            _normalize(program, embedding.norm, out, out)


class _Step(NamedTuple):
    """A decoder's program for some slots."""

    program: Program
    out: Tensor  # what comes of it, [slots, width]
    shares: list[tuple[LayerKey, Tensor]]  # probabilities of each attention, [slots, heads, positions]


def _is_kept_as_it_is(target: RecordTarget, shown: int) -> bool:
    """Whether all heads' numbers of so many positions go side by side, in float32."""
    result, part = target.result, target.part
    return (
        result.is_dense_float
        and result.values.dtype == torch.float32
        and result.length == shown
        and part.heads is None
        and part.columns is None
        and part.over_heads is None
    )


class ProgrammedSources:
    """The encoder of a model, and what its cross-attention keeps of sources. For one thread."""

    def __init__(self, model: Any) -> None:
        """Raises UnknownLayerError where it does not run as a program."""
        self._encoder: Any = model.get_encoder()
        _check(self._encoder)
        self._embedding = Embedding(self._encoder)
        self._heads, self._scaling = heads_of(self._encoder)
        self._layers = [_EncoderLayer(layer) for layer in self._encoder.layers]
        self._projections = [_joined_panels(layer.encoder_attn.k_proj) for layer in model.get_decoder().layers]
        self._made: WeakKeyDictionary[KVCache, _Reading] = WeakKeyDictionary()

    def takes(self, length: int) -> bool:
        """Whether it reads sources of so many tokens. Of longer ones, torch makes attention faster."""
        return length <= MOST_POSITIONS

    def read(self, ids: Tensor, lengths: Mapping[int, int], slots: KVCache) -> None:
        """Reads sources, `[B, S]`, and keeps the keys and values that cross-attention makes of them.

        `lengths` says of each row, in order, which slot it is for, and how much of it is no padding.
        """
        made = self._made.get(slots)
        if made is None:
            made = self._made[slots] = self._make(slots)
        places, counts = [*lengths], [*lengths.values()]
        together = TOGETHER // ids.shape[1]
        for begin in range(0, len(ids), together):
            some = slice(begin, begin + together)
            size = max(counts[some])
            rows = self._embedding.of_sources(ids[some, :size]).flatten(0, 1)
            made.hidden[: len(rows)] = rows
            made.slots[: len(places[some])] = torch.tensor(places[some])
            made.lengths[: len(places[some])] = torch.tensor(counts[some])
            made.program.run(len(rows), sequence=size)
        slots.source_lengths[places] = torch.tensor(counts)[:, None]

    def _make(self, slots: KVCache) -> _Reading:
        """Lays out a reading for some slots."""
        program = Program(TOGETHER)
        stack = _Stack(program, self._encoder)
        projected = program.room(3 * stack.width)
        places, lengths = (torch.ones(TOGETHER, dtype=torch.int64) for _ in range(2))
        made = _Reading(program, stack.hidden, places, lengths)
        for layer in self._layers:
            program.product(stack.before(layer.own_norm), layer.project, projected)
            program.attend_within(projected, self._heads, lengths, self._scaling, stack.mixed)
            stack.after(layer.own_norm, layer.own_out)
            stack.feed(layer.forward)
        end = stack.end()
        for panels, layer in zip(self._projections, slots.source_layers, strict=True):
            both = projected[:, : panels.size]
            program.product(end, panels, both)
            program.spread(both, layer.all_keys, layer.all_values, places, lengths)
        return made


class _Reading(NamedTuple):
    """An encoder's program for some slots."""

    program: Program
    hidden: Tensor  # what goes in, [rows, width]
    slots: Tensor  # of each sequence, int64
    lengths: Tensor  # likewise


# ---- layers ---------------------------------------------------------------------------------------------------------


class _Forward:
    """What the last part of a layer needs. Raises UnknownLayerError where something is not known, as the others do."""

    def __init__(self, layer: Any) -> None:
        self.norm = _norm(layer.final_layer_norm)
        self.widen, self.narrow = _panels(layer.fc1), _panels(layer.fc2)
        activation = _ACTIVATIONS.get(type(layer.activation_fn))
        if activation is None:
            raise UnknownLayerError("an activation that no program has")
        self.activation: Activation = activation


class _EncoderLayer:
    """What a layer needs whose sequences see themselves."""

    def __init__(self, layer: Any) -> None:
        self.own_norm = _norm(layer.self_attn_layer_norm)
        self.project, self.own_out = _joined_panels(layer.self_attn.q_proj), _panels(layer.self_attn.out_proj)
        self.own_site: LayerKey = layer.self_attn.sidelight_site
        self.forward = _Forward(layer)


class _DecoderLayer(_EncoderLayer):
    """And their sources, too."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.source_norm = _norm(layer.encoder_attn_layer_norm)
        self.source_query, self.source_out = _panels(layer.encoder_attn.q_proj), _panels(layer.encoder_attn.out_proj)
        self.source_site: LayerKey = layer.encoder_attn.sidelight_site


class _Stack:
    """The operations around attention, from one part of a layer to the next."""

    def __init__(self, program: Program, stack: Any) -> None:
        """`stack` is a family's own encoder or decoder."""
        self._program = program
        self._normalizes_input = normalizes_input(stack.layers[0])
        self._end: nn.LayerNorm | None = getattr(stack, "layer_norm", None)
        self.width = int(stack.config.d_model)
        self.hidden, self.mixed = program.room(self.width), program.room(self.width)
        self._next, self._normal = program.room(self.width), program.room(self.width)
        self._wide = program.room(max(layer.fc1.out_features for layer in stack.layers))

    def before(self, norm: nn.LayerNorm) -> Tensor:
        """What a part reads."""
        if not self._normalizes_input:
            return self.hidden
        _normalize(self._program, norm, self.hidden, self._normal)
        return self._normal

    def after(self, norm: nn.LayerNorm, out: PackedWeight) -> None:
        """What becomes of what an attention has mixed."""
        self._add(norm, self.mixed, out)

    def feed(self, forward: _Forward) -> None:
        """The last part of a layer."""
        wide = self._wide[:, : forward.widen.size]
        self._program.product(self.before(forward.norm), forward.widen, wide, activation=forward.activation)
        self._add(forward.norm, wide, forward.narrow)

    def end(self) -> Tensor:
        """What comes of all layers."""
        if self._end is None:
            return self.hidden
        _normalize(self._program, _norm(self._end), self.hidden, self._normal)
        return self._normal

    def _add(self, norm: nn.LayerNorm, x: Tensor, out: PackedWeight) -> None:
        self._program.product(x, out, self._next, added=self.hidden)
        if self._normalizes_input:
            self.hidden, self._next = self._next, self.hidden
        else:
            _normalize(self._program, norm, self._next, self.hidden)


def _norm(norm: Any) -> nn.LayerNorm:
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        raise UnknownLayerError("a norm that no program has")
    return norm


def _panels(layer: Any) -> PackedWeight:
    panels = layer.panels if isinstance(layer, PackedLinear) else None
    if panels is None:
        raise UnknownLayerError("weights that are not in panels")
    return panels


def _joined_panels(part: Any) -> PackedWeight:
    if not isinstance(part, FusedSlice):
        raise UnknownLayerError("projections that are not joined")
    return _panels(part.joined.linear)


def _normalize(program: Program, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> None:
    program.normalize(x, norm.weight.detach(), norm.bias.detach(), norm.eps, out)
