"""The CPU programs of a BART-style model: a step of all slots, and the encoder with the projections of cross-attention.

The layers and the numbers are those of `bart_backend`. A program is laid out once for each KV cache, whose tensors stay
where they are. Knows layers, weights in panels and KV caches; knows nothing of requests.
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

from ...kernels.cpu import (
    MAX_HEAD_WIDTH,
    MAX_POSITIONS,
    Activation,
    Attention,
    PackedWeight,
    Program,
    is_supported,
    store_rows,
)
from ..capture import LayerKey, RecordTarget, layer_key_of, record_targets, write_step_rows
from ..layers import ArgmaxQuery, FusedSlice, PackedLinear
from .backend import UnsupportedModelError
from .bart_modules import Embedding, heads_of, is_pre_norm
from .kv_cache import KVCache

_ACTIVATIONS: dict[type, Activation] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    SiLUActivation: "silu",
    GELUActivation: "gelu",
}

# Source tokens that the encoder's program reads at once: few enough to stay in a core's cache.
MAX_PROGRAM_TOKENS = 512

_POSITIONS = np.arange(MAX_POSITIONS)


def check_stack(stack: Any) -> None:
    """Raise UnsupportedModelError unless an encoder or decoder may run as a program once its weights are in panels."""
    if getattr(stack, "dtype", None) != torch.float32 or stack.device.type != "cpu" or not is_supported():
        raise UnsupportedModelError("programs are for CPUs with AVX2, and for float32 and int8")
    heads, _ = heads_of(stack)
    if stack.config.d_model // heads > MAX_HEAD_WIDTH:
        raise UnsupportedModelError("heads too wide for programs")


# ---- steps ----------------------------------------------------------------------------------------------------------


class _StepProgram(NamedTuple):
    """The decoder's program for the slots of one KV cache."""

    program: Program
    output: Tensor  # [slots, width]
    probabilities: list[tuple[LayerKey, Tensor]]  # of each attention, [slots, heads, positions]


class DecoderProgram:
    """The decoder of a model as a program, for steps of one token of each sequence. For one thread."""

    def __init__(self, decoder: Any) -> None:
        """`decoder` is the model's own. Raises UnsupportedModelError for a part that no program has."""
        self._decoder = decoder
        self._embedding = Embedding(decoder)
        self._heads, self._scaling = heads_of(decoder)
        self._layers = [_DecoderLayer(layer) for layer in decoder.layers]
        self._programs: WeakKeyDictionary[KVCache, _StepProgram] = WeakKeyDictionary()

    def run(self, tokens: Tensor, cache: KVCache, query: ArgmaxQuery | None = None) -> Tensor:
        """The output `[n, width]` for one token `[n, 1]` of each slot that has begun a step.

        The output stays as it is until the next step. The argmax that a `query` asks for is found in the same run.
        """
        step = self._programs.get(cache)
        if step is None:
            step = self._programs[cache] = self._build(cache)
        first, count, length, source_length = cache.stepping
        epilogue: list[NDArray[np.int64]] = []
        other_targets: list[tuple[RecordTarget, Tensor, Tensor]] = []
        for key, probabilities in step.probabilities:
            visible = source_length if key.kind == "cross" else length
            for target in record_targets(key, (count, self._heads, 1, visible), tokens.device):
                if _is_stored_as_computed(target, visible):
                    column, is_cross = target.layer_spec.column, key.kind == "cross"
                    operation = store_rows(probabilities, target.tensors.values, column, target.rows, is_cross=is_cross)
                    epilogue.append(operation[None])
                else:
                    layers = cache.source_layers if key.kind == "cross" else cache.own.slot_layers
                    values = layers[key.layer].all_values[first : first + count, :, :visible]
                    other_targets.append((target, probabilities[:count, :, None, :visible], values))
        output = step.output[:count]
        if query is not None:
            epilogue.append(query.search.prepare(output, query.masked))
        step.program.run(
            count,
            x=tokens,
            first_slot=first,
            num_self_positions=length,
            num_cross_positions=source_length,
            epilogue=np.concatenate(epilogue) if epilogue else None,
        )
        for target, probabilities, values in other_targets:
            write_step_rows([target], probabilities, values)
        return output

    def _build(self, cache: KVCache) -> _StepProgram:
        """Lay out a step for the slots of a cache, whose keys and values stay where they are."""
        count = len(cache.own.lengths)
        program = Program(count)
        builder = _StackBuilder(program, self._decoder)
        ids = torch.zeros(count, 1, dtype=torch.int64)  # a placeholder for the tokens of a step
        num_positions = cache.own.slot_layers[0].get_max_length()
        _embed(program, self._embedding, ids, cache.own.lengths, num_positions, builder.hidden)
        projected = program.buffer(3 * builder.width)
        all_probabilities: list[tuple[LayerKey, Tensor]] = []

        def attend(query: Tensor, attention: Attention, key: LayerKey) -> None:
            probabilities = torch.zeros(count, self._heads, attention.keys.shape[2])
            all_probabilities.append((key, probabilities))
            program.attend(query, attention, probabilities, builder.attended)

        for index, layer in enumerate(self._layers):
            own, source = cache.own.slot_layers[index], cache.source_layers[index]
            program.matmul(builder.input_of(layer.own_norm), layer.project, projected)
            query, *new = projected.split(builder.width, 1)
            attention = Attention(own.all_keys, own.all_values, cache.own.lengths, self._scaling, (new[0], new[1]))
            attend(query, attention, layer.own_key)
            builder.add_attention(layer.own_norm, layer.own_output)
            program.matmul(builder.input_of(layer.source_norm), layer.source_query, query)
            attention = Attention(source.all_keys, source.all_values, cache.source_lengths, self._scaling)
            attend(query, attention, layer.source_key)
            builder.add_attention(layer.source_norm, layer.source_output)
            builder.add_feed_forward(layer.feed_forward)
        return _StepProgram(program, builder.end(), all_probabilities)


def _is_stored_as_computed(target: RecordTarget, visible: int) -> bool:
    """Whether a target takes `visible` positions of all heads side by side, in float32."""
    result, part = target.tensors, target.layer_spec
    return (
        target.is_plain
        and result.is_dense_float
        and result.values.dtype == torch.float32
        and result.length == visible
        and part.heads is None
        and part.columns is None
        and part.over_heads is None
    )


# ---- sources --------------------------------------------------------------------------------------------------------


class _PrefillProgram(NamedTuple):
    """The encoder's program for the slots of one KV cache. Rows of all sources follow one another, without padding."""

    program: Program
    ids: NDArray[np.int64]  # of each row: the token
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    placeless_id: int | None  # the token that takes no position


class EncoderProgram:
    """The encoder of a model and the projections of its cross-attention as a program. For one thread."""

    def __init__(self, model: Any) -> None:
        """Raises UnsupportedModelError for a part that no program has."""
        self._encoder: Any = model.get_encoder()
        self._embedding = Embedding(self._encoder)
        self._heads, self._scaling = heads_of(self._encoder)
        self._layers = [_EncoderLayer(layer) for layer in self._encoder.layers]
        self._projections = [_fused_panels(layer.encoder_attn.k_proj) for layer in model.get_decoder().layers]
        self._programs: WeakKeyDictionary[KVCache, _PrefillProgram] = WeakKeyDictionary()

    def takes(self, length: int) -> bool:
        """Whether the program reads sources of so many tokens. For longer ones, torch's attention is faster."""
        return length <= MAX_POSITIONS

    def run(self, ids: Tensor, lengths: Mapping[int, int], cache: KVCache) -> None:
        """Encode source tokens `[B, S]` and store the keys and values of cross-attention.

        `lengths` maps the slot of each row, in the order of the rows, to the number of tokens that are no padding.
        """
        prefill = self._programs.get(cache)
        if prefill is None:
            prefill = self._programs[cache] = self._build(cache)
        counts: list[int] = []  # of the sources that are read next
        num_rows = 0
        # By NumPy: a call of torch releases Python's lock, and other threads keep the lock for a while.
        for source, (slot, length) in zip(ids.numpy(), lengths.items(), strict=True):
            if num_rows + length > MAX_PROGRAM_TOKENS:
                prefill.program.run(num_rows, sequence_lengths=counts)
                counts, num_rows = [], 0
            rows = slice(num_rows, num_rows + length)
            prefill.ids[rows], prefill.slots[rows] = source[:length], slot
            prefill.positions[rows] = _positions_of(source[:length], prefill.placeless_id)
            counts.append(length)
            num_rows += length
        prefill.program.run(num_rows, sequence_lengths=counts)
        cache.source_lengths.numpy()[[*lengths], 0] = [*lengths.values()]

    def _build(self, cache: KVCache) -> _PrefillProgram:
        """Lay out the reading of sources for the slots of a cache."""
        program = Program(MAX_PROGRAM_TOKENS)
        builder = _StackBuilder(program, self._encoder)
        projected = program.buffer(3 * builder.width)
        ids, slots, positions = torch.zeros(3, MAX_PROGRAM_TOKENS, dtype=torch.int64)
        num_positions = min(MAX_POSITIONS, cache.source_layers[0].get_max_length())
        placeless_id = _embed(program, self._embedding, ids[:, None], positions, num_positions, builder.hidden)
        for layer in self._layers:
            program.matmul(builder.input_of(layer.own_norm), layer.project, projected)
            program.attend_sequences(projected, self._heads, self._scaling, builder.attended)
            builder.add_attention(layer.own_norm, layer.own_output)
            builder.add_feed_forward(layer.feed_forward)
        encoded = builder.end()
        for panels, layer in zip(self._projections, cache.source_layers, strict=True):
            keys_and_values = projected[:, : panels.out_features]
            program.matmul(encoded, panels, keys_and_values)
            program.scatter_kv(keys_and_values, layer.all_keys, layer.all_values, slots, positions)
        return _PrefillProgram(program, ids.numpy(), slots.numpy(), positions.numpy(), placeless_id)


def _positions_of(ids: NDArray[np.int64], placeless_id: int | None) -> NDArray[np.int64]:
    """The positions of the tokens of a source."""
    if placeless_id is None or placeless_id not in ids:
        return _POSITIONS[: len(ids)]
    return np.maximum(np.cumsum(ids != placeless_id) - 1, 0)


# ---- embeddings -----------------------------------------------------------------------------------------------------


def _embed(
    program: Program, embedding: Embedding, ids: Tensor, positions: Tensor, num_positions: int, out: Tensor
) -> int | None:
    """Embed tokens `[rows, 1]` at `positions`, which are below `num_positions`: int64, one for each row.

    Returns the token that takes no position, if there is one: padding, in some families (M2M100).
    """
    table = embedding.table
    places = torch.arange(num_positions)[:, None]
    padding = table.padding_idx
    token = 0 if padding != 0 else 1  # any token that is no padding
    of_tokens = embedding.positions(torch.full_like(places, token), places)[:, 0].float().contiguous()
    special: tuple[int, Tensor] | None = None
    if padding is not None:
        of_padding = embedding.positions(torch.full_like(places, padding), places)[:, 0].float().contiguous()
        special = None if torch.equal(of_padding, of_tokens) else (padding, of_padding)
    # The tables of some families multiply what they return.
    scale = float(getattr(table, "embed_scale", 1.0)) * embedding.scale
    program.embed(ids, table.weight.detach(), scale, of_tokens, positions, out, special=special)
    if embedding.norm is not None:
        _normalize(program, embedding.norm, out, out)
    return None if special is None else special[0]


# ---- layers ---------------------------------------------------------------------------------------------------------
#
# The classes below collect the weights of a layer. They raise UnsupportedModelError for a part that no program has.
# `find_attention_layers` has given each attention module its `LayerKey`.


def _layer_key(module: nn.Module) -> LayerKey:
    layer_key = layer_key_of(module)
    if layer_key is None:
        raise UnsupportedModelError("attention without a layer key")
    return layer_key


class _FeedForward:
    """The weights of the feed-forward part of a layer."""

    def __init__(self, layer: Any) -> None:
        self.norm = _layer_norm(layer.final_layer_norm)
        self.widen, self.narrow = _panels(layer.fc1), _panels(layer.fc2)
        activation = _ACTIVATIONS.get(type(layer.activation_fn))
        if activation is None:
            raise UnsupportedModelError("an activation that no program has")
        self.activation: Activation = activation


class _EncoderLayer:
    """The weights of an encoder layer."""

    def __init__(self, layer: Any) -> None:
        self.own_norm = _layer_norm(layer.self_attn_layer_norm)
        self.project, self.own_output = _fused_panels(layer.self_attn.q_proj), _panels(layer.self_attn.out_proj)
        self.own_key = _layer_key(layer.self_attn)
        self.feed_forward = _FeedForward(layer)


class _DecoderLayer(_EncoderLayer):
    """The weights of a decoder layer: those of an encoder layer, and of cross-attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.source_norm = _layer_norm(layer.encoder_attn_layer_norm)
        self.source_query = _panels(layer.encoder_attn.q_proj)
        self.source_output = _panels(layer.encoder_attn.out_proj)
        self.source_key = _layer_key(layer.encoder_attn)


class _StackBuilder:
    """Adds the operations around attention to a program, from one part of a layer to the next."""

    def __init__(self, program: Program, stack: Any) -> None:
        """`stack` is the model's encoder or decoder."""
        self._program = program
        self._is_pre_norm = is_pre_norm(stack.layers[0])
        self._final_norm: nn.LayerNorm | None = getattr(stack, "layer_norm", None)
        self.width = int(stack.config.d_model)
        self.hidden, self.attended = program.buffer(self.width), program.buffer(self.width)
        self._next, self._normalized = program.buffer(self.width), program.buffer(self.width)
        self._wide = program.buffer(max(layer.fc1.out_features for layer in stack.layers))

    def input_of(self, norm: nn.LayerNorm) -> Tensor:
        """The buffer that the next part of a layer reads."""
        if not self._is_pre_norm:
            return self.hidden
        _normalize(self._program, norm, self.hidden, self._normalized)
        return self._normalized

    def add_attention(self, norm: nn.LayerNorm, output: PackedWeight) -> None:
        """Project what attention has left in `attended`, and add it to the hidden state."""
        self._add(norm, self.attended, output)

    def add_feed_forward(self, feed_forward: _FeedForward) -> None:
        """Run the feed-forward part, and add its output to the hidden state."""
        wide = self._wide[:, : feed_forward.widen.out_features]
        hidden = self.input_of(feed_forward.norm)
        self._program.matmul(hidden, feed_forward.widen, wide, activation=feed_forward.activation)
        self._add(feed_forward.norm, wide, feed_forward.narrow)

    def end(self) -> Tensor:
        """The output of all layers."""
        if self._final_norm is None:
            return self.hidden
        _normalize(self._program, _layer_norm(self._final_norm), self.hidden, self._normalized)
        return self._normalized

    def _add(self, norm: nn.LayerNorm, x: Tensor, weight: PackedWeight) -> None:
        self._program.matmul(x, weight, self._next, added=self.hidden)
        if self._is_pre_norm:
            self.hidden, self._next = self._next, self.hidden
        else:
            _normalize(self._program, norm, self._next, self.hidden)


def _layer_norm(norm: Any) -> nn.LayerNorm:
    if type(norm) is not nn.LayerNorm or norm.weight is None or norm.bias is None:
        raise UnsupportedModelError("a norm that no program has")
    return norm


def _panels(layer: Any) -> PackedWeight:
    panels = layer.panels if isinstance(layer, PackedLinear) else None
    if panels is None:
        raise UnsupportedModelError("weights that are not in panels")
    return panels


def _fused_panels(layer: Any) -> PackedWeight:
    if not isinstance(layer, FusedSlice):
        raise UnsupportedModelError("projections that are not fused")
    return _panels(layer.fused.linear)


def _normalize(program: Program, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> None:
    program.layer_norm(x, norm.weight.detach(), norm.bias.detach(), norm.eps, out)
