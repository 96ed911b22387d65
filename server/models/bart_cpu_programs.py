"""The CPU programs of a BART-style model: steps of all slots, sources, and whole targets.

The layers and the numbers are those of `bart_backend`. A program for slots is laid out once for each KV cache, whose
tensors stay where they are. Knows layers, weights in panels and KV caches; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...kernels.cpu import MAX_POSITIONS, Attention, Program
from ..capture import LayerKey, RecordTarget, record_targets, write_rows, write_step_rows
from ..layers import ArgmaxQuery
from .backend import BackendConfig, TargetBatch
from .bart_cpu_layers import (
    DecoderLayer,
    EncoderLayer,
    Epilogue,
    StackBuilder,
    TokenRows,
    embed_tokens,
    fused_panels,
)
from .bart_modules import Embedding, heads_of
from .kv_cache import KVCache, KVCacheLayer, zeros

# Source tokens that the encoder's program reads at once: few enough to stay in a core's cache.
MAX_PROGRAM_TOKENS = 512


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
        self._layers = [DecoderLayer(layer) for layer in decoder.layers]
        self._programs: WeakKeyDictionary[KVCache, _StepProgram] = WeakKeyDictionary()

    def run(self, tokens: Tensor, cache: KVCache, query: ArgmaxQuery | None = None) -> Tensor:
        """The output `[n, width]` for one token `[n, 1]` of each slot that has begun a step.

        The output stays as it is until the next step. The argmax that a `query` asks for is found in the same run.
        """
        step = self._programs.get(cache)
        if step is None:
            step = self._programs[cache] = self._build(cache)
        first, count, length, source_length = cache.stepping
        epilogue = Epilogue()
        other_targets: list[tuple[RecordTarget, Tensor, Tensor]] = []
        for key, probabilities in step.probabilities:
            visible = source_length if key.kind == "cross" else length
            for target in record_targets(key, (count, self._heads, 1, visible), tokens.device):
                is_cross = key.kind == "cross"
                if not epilogue.add(target, probabilities, target.rows, visible, is_cross=is_cross):
                    layers = cache.source_layers if is_cross else cache.own.slot_layers
                    values = layers[key.layer].all_values[first : first + count, :, :visible]
                    other_targets.append((target, probabilities[:count, :, None, :visible], values))
        output = step.output[:count]
        if query is not None:
            epilogue.operations.append(query.search.prepare(output, query.masked))
        step.program.run(
            count,
            x=tokens,
            first_slot=first,
            num_self_positions=length,
            num_cross_positions=source_length,
            epilogue=epilogue.table,
        )
        for target, probabilities, values in other_targets:
            write_step_rows([target], probabilities, values)
        return output

    def _build(self, cache: KVCache) -> _StepProgram:
        """Lay out a step for the slots of a cache, whose keys and values stay where they are."""
        count = len(cache.own.lengths)
        program = Program(count)
        builder = StackBuilder(program, self._decoder)
        ids = torch.zeros(count, 1, dtype=torch.int64)  # a placeholder for the tokens of a step
        num_positions = cache.own.slot_layers[0].get_max_length()
        embed_tokens(program, self._embedding, ids, cache.own.lengths, num_positions, builder.hidden)
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


# ---- sources --------------------------------------------------------------------------------------------------------


class _PrefillProgram(NamedTuple):
    """The encoder's program for the slots of one KV cache. Rows of all sources follow one another, without padding."""

    program: Program
    tokens: TokenRows
    slots: NDArray[np.int64]  # of each row


class EncoderProgram:
    """The encoder of a model and the projections of its cross-attention as a program. For one thread."""

    def __init__(self, model: Any) -> None:
        """Raises UnsupportedModelError for a part that no program has."""
        self._encoder: Any = model.get_encoder()
        self._layers = [EncoderLayer(layer) for layer in self._encoder.layers]
        self._projections = [fused_panels(layer.encoder_attn.k_proj) for layer in model.get_decoder().layers]
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
            prefill.slots[rows] = slot
            prefill.tokens.place(num_rows, source[:length])
            counts.append(length)
            num_rows += length
        prefill.program.run(num_rows, sequence_lengths=counts)
        cache.source_lengths.numpy()[[*lengths], 0] = [*lengths.values()]

    def _build(self, cache: KVCache) -> _PrefillProgram:
        """Lay out the reading of sources for the slots of a cache."""
        program = Program(MAX_PROGRAM_TOKENS)
        num_positions = min(MAX_POSITIONS, cache.source_layers[0].get_max_length())
        tokens, encoded = _add_encoder(program, self._encoder, self._layers, num_positions)
        slots = torch.zeros(MAX_PROGRAM_TOKENS, dtype=torch.int64)
        for panels, layer in zip(self._projections, cache.source_layers, strict=True):
            keys_and_values = program.buffer(panels.out_features)
            program.matmul(encoded, panels, keys_and_values)
            program.scatter_kv(keys_and_values, layer.all_keys, layer.all_values, slots, tokens.positions)
        return _PrefillProgram(program, tokens, slots.numpy())


def _add_encoder(
    program: Program, encoder: Any, layers: Sequence[EncoderLayer], num_positions: int
) -> tuple[TokenRows, Tensor]:
    """Adds the encoder to a program. Returns its input and its output, `[rows, width]`."""
    builder, (heads, scaling) = StackBuilder(program, encoder), heads_of(encoder)
    tokens = TokenRows(program, Embedding(encoder), MAX_PROGRAM_TOKENS, num_positions, builder.hidden)
    projected = program.buffer(3 * builder.width)
    query, keys_and_values = projected[:, : builder.width], projected[:, builder.width :]
    for layer in layers:
        program.matmul(builder.input_of(layer.own_norm), layer.project, projected)
        program.attend_sequences(query, keys_and_values, heads, scaling, builder.attended)
        builder.add_attention(layer.own_norm, layer.own_output)
        builder.add_feed_forward(layer.feed_forward)
    return tokens, builder.end()


# ---- whole targets --------------------------------------------------------------------------------------------------


class _Places:
    """Where the keys and values of the rows of a program go: the slot, and the position in the slot."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._places = torch.zeros(2, MAX_PROGRAM_TOKENS, dtype=torch.int64)

    def store(self, keys_and_values: Tensor, layer: KVCacheLayer) -> None:
        """Adds an operation that copies keys and values, side by side, into the slots of a layer."""
        self._program.scatter_kv(keys_and_values, layer.all_keys, layer.all_values, *self._places)

    def set(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Writes the places of a run whose sequences go to these slots."""
        num_rows, places = sum(lengths), self._places.numpy()
        places[0, :num_rows] = np.repeat(slots, lengths)
        places[1, :num_rows] = np.concatenate([np.arange(length) for length in lengths])


class _WholeAttention(NamedTuple):
    """One attention of whole targets."""

    key: LayerKey
    probabilities: Tensor  # [rows, heads, positions]
    end: int  # how many operations of the decoder's program come before what follows


class TargetProgram:
    """Encoder and decoder over whole sequences as two programs, for given targets. For one thread.

    Rows of all sequences follow one another, without padding. A run ends where nobody wants what follows.
    """

    def __init__(self, model: Any, config: BackendConfig, cache: KVCache | None = None) -> None:
        """With a `cache`, the programs store keys and values in its slots, which the batches name.

        Raises UnsupportedModelError for a part that no program has.
        """
        encoder, decoder = model.get_encoder(), model.get_decoder()
        self._max_source, self._max_target = (
            min(MAX_POSITIONS, most) for most in (config.max_source_tokens, config.max_target_tokens)
        )
        self._encoder, self._decoder = Program(MAX_PROGRAM_TOKENS), Program(MAX_PROGRAM_TOKENS)
        layers = [EncoderLayer(layer) for layer in encoder.layers]
        self._sources, self._encoded = _add_encoder(self._encoder, encoder, layers, self._max_source)
        self._encoded_end = self._encoder.num_operations
        builder, (self._heads, self._scaling) = StackBuilder(self._decoder, decoder), heads_of(decoder)
        embedding = Embedding(decoder)
        self._targets = TokenRows(self._decoder, embedding, MAX_PROGRAM_TOKENS, self._max_target, builder.hidden)
        self._attentions: dict[LayerKey, _WholeAttention] = {}
        self._source_ends: list[int] = []  # how many operations of the encoder's program each decoder layer needs
        self._source_places, self._target_places = _Places(self._encoder), _Places(self._decoder)
        projected = self._decoder.buffer(3 * builder.width)
        for number, layer in enumerate(decoder.layers):
            panels = fused_panels(layer.encoder_attn.k_proj)
            keys_and_values = self._encoder.buffer(panels.out_features)
            self._encoder.matmul(self._encoded, panels, keys_and_values)
            if cache is not None:
                self._source_places.store(keys_and_values, cache.source_layers[number])
            self._source_ends.append(self._encoder.num_operations)
            own = None if cache is None else cache.own.slot_layers[number]
            self._add_layer(builder, DecoderLayer(layer), projected, keys_and_values, own)
        self._output = builder.end()

    def _add_layer(
        self, builder: StackBuilder, layer: DecoderLayer, projected: Tensor, source: Tensor, own: KVCacheLayer | None
    ) -> None:
        """Adds a layer of the decoder. `source` are the keys and values of cross-attention side by side.

        Those of self-attention go to the slots of `own`.
        """
        query, keys_and_values = projected[:, : builder.width], projected[:, builder.width :]
        self._decoder.matmul(builder.input_of(layer.own_norm), layer.project, projected)
        if own is not None:
            self._target_places.store(keys_and_values, own)
        self._attend(layer.own_key, query, keys_and_values, builder.attended)
        builder.add_attention(layer.own_norm, layer.own_output)
        self._decoder.matmul(builder.input_of(layer.source_norm), layer.source_query, query)
        self._attend(layer.source_key, query, source, builder.attended)
        builder.add_attention(layer.source_norm, layer.source_output)
        builder.add_feed_forward(layer.feed_forward)

    def _attend(self, key: LayerKey, query: Tensor, keys_and_values: Tensor, out: Tensor) -> None:
        is_cross = key.kind == "cross"
        shape = (MAX_PROGRAM_TOKENS, self._heads, self._max_source if is_cross else self._max_target)
        probabilities = zeros(shape, torch.float32, query.device)
        options = {"is_causal": not is_cross, "is_cross": is_cross, "probabilities": probabilities}
        self._decoder.attend_sequences(query, keys_and_values, self._heads, self._scaling, out, **options)
        self._attentions[key] = _WholeAttention(key, probabilities, self._decoder.num_operations)

    def takes_sources(self, lengths: Sequence[int]) -> bool:
        """Whether the encoder's program reads sources of so many tokens together."""
        return _fits(lengths, self._max_source)

    def encode(self, sources: Tensor, lengths: Sequence[int]) -> Tensor:
        """The encoder's output for source tokens `[B, S]`: `[B, longest, width]`."""
        num_rows = self._sources.place_all(sources, lengths)
        self._encoder.run(num_rows, sequence_lengths=lengths, num_operations=self._encoded_end)
        return self._encoded[_find_rows(lengths)]

    def record_targets(self, batch: TargetBatch) -> list[tuple[_WholeAttention, RecordTarget]] | None:
        """Where the rows of a batch go; None where the program does not run the batch.

        A method that multiplies keys with factors needs the values of all layers, which the program does not keep.
        """
        if not self.takes_sources(batch.source_lengths) or not _fits(batch.lengths, self._max_target):
            return None
        targets: list[tuple[_WholeAttention, RecordTarget]] = []
        num_targets = batch.targets.shape
        for key, attention in self._attentions.items():
            visible = max(batch.source_lengths if key.kind == "cross" else batch.lengths)
            shape = (num_targets[0], self._heads, num_targets[1], visible)
            targets += [(attention, target) for target in record_targets(key, shape, batch.targets.device)]
        return None if any(target.factors is not None for _, target in targets) else targets

    def run(self, batch: TargetBatch, targets: Sequence[tuple[_WholeAttention, RecordTarget]]) -> Tensor | None:
        """Reads a batch, and records its rows where `record_targets` has said. Returns what `Backend` says."""
        assert batch.sources is not None
        last, lengths, source_lengths = batch.last_attention, batch.lengths, batch.source_lengths
        num_cross = len(self._source_ends) if last is None else last.layer + (last.kind == "cross")
        if batch.cache is not None:
            self._source_places.set(batch.slots, source_lengths)
            self._target_places.set(batch.slots, lengths)
        if num_cross:
            num_rows = self._sources.place_all(batch.sources, source_lengths)
            end = self._source_ends[num_cross - 1]
            self._encoder.run(num_rows, sequence_lengths=source_lengths, num_operations=end)
        rows = _find_rows(lengths)
        epilogue = Epilogue()
        others: list[tuple[_WholeAttention, RecordTarget, Tensor]] = []
        for attention, target in targets:
            kept = rows[:, target.queries] if target.rows is None else rows[target.rows, target.queries]
            is_cross = attention.key.kind == "cross"
            visible = max(source_lengths if is_cross else lengths)
            if not epilogue.add(target, attention.probabilities, kept, visible, is_cross=is_cross):
                others.append((attention, target, kept))
        self._decoder.run(
            self._targets.place_all(batch.targets, lengths),
            sequence_lengths=lengths,
            key_lengths=source_lengths,
            num_self_positions=max(lengths),
            num_cross_positions=max(source_lengths),
            num_operations=None if last is None else self._attentions[last].end,
            epilogue=epilogue.table,
        )
        for attention, target, kept in others:
            visible = max(source_lengths if attention.key.kind == "cross" else lengths)
            write_rows(target, attention.probabilities[:, :, :visible][kept].transpose(1, 2))
        return self._output[rows] if last is None else None


def _fits(lengths: Sequence[int], longest: int) -> bool:
    """Whether a program reads sequences of so many tokens together, each of at most `longest`."""
    return max(lengths) <= longest and sum(lengths) <= MAX_PROGRAM_TOKENS


def _find_rows(lengths: Sequence[int]) -> Tensor:
    """Where the rows of each sequence are, int64 `[B, longest]`; padding has the last row of its sequence."""
    counts = np.array(lengths)[:, None]
    return torch.from_numpy(np.cumsum(counts)[:, None] - counts + np.minimum(np.arange(max(lengths)), counts - 1))
