"""Reads sources and prompts into the KV cache: several sources in one pass, long prompts in chunks.

A follow stream reads its source, or a part of its target, once more where its client changes them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels import AttentionTensors
from ..capture import (
    AttentionArrays,
    AttentionKind,
    FactorCache,
    PassRecorder,
    RowCombiner,
    build_arrays,
    list_tensors,
    record_to,
)
from ..errors import not_a_number
from ..memory import release_memory_of
from ..models import MAX_PREFILL_TOKENS, Backend, KVCache, LoadedModel
from ..request import Request
from ..transfer import int_tensor, to_host
from .sequence import Rewind, Sequence, num_common
from .single_sequence import ALL_QUERIES, SingleSequenceModel, features_tensor, find_special, new_combiner

# Tokens of a prompt that are read between two steps of the other sequences.
_CHUNK = 256


class Prefill:
    """Fills the KV cache of one runner."""

    def __init__(self, loaded: LoadedModel, backend: Backend, cache: KVCache, factors: FactorCache) -> None:
        self._loaded = loaded
        self._backend = backend
        self._cache = cache
        self._factors = factors
        self._device = loaded.model.device
        self._padding: int = loaded.model.config.pad_token_id or 0

    def read_sources(self, sequences: list[Sequence]) -> dict[Sequence, Exception]:
        """Runs the encoder over the sources of some sequences, and keeps their keys and values for cross-attention.

        Sources of similar length are read in one pass. Where encoder self-attention is captured, a pass of its own
        computes it, so that a capture changes no bit of what the decoder reads. Returns the sequences whose source
        could not be read, each with the reason.
        """
        faults = self._read_groups(sequences)
        for sequence in sequences:
            if sequence not in faults and "encoder_self" in sequence.plan.recorded.kinds:
                try:
                    sequence.source_attention = self.source_attention(sequence.request, sequence.combiner)
                except Exception as error:
                    faults[sequence] = release_memory_of(error)
        return faults

    def rewind(self, rewinds: list[Rewind]) -> dict[Sequence, Exception]:
        """Takes sequences back, in the cache, to the tokens that they have in common with what they are to stand at.

        The other tokens are a prompt, which `read_prompt` reads. Changed sources are read at once, if no pass over
        source and target reads them. Returns the sequences whose source could not be read, each with the reason.
        """
        changed: list[Sequence] = []
        faults: dict[Sequence, Exception] = {}
        for rewind in rewinds:
            try:
                if self._rewind(rewind):
                    changed.append(rewind.sequence)
            except Exception as error:  # noqa: PERF203  # one request's fault must not end the others
                faults[rewind.sequence] = release_memory_of(error)
        return faults | self.read_sources(changed)

    def _rewind(self, rewind: Rewind) -> bool:
        """Takes one sequence back. Returns whether its source must be read."""
        sequence, request, target_ids, _, is_read_whole = rewind
        is_other_source = request.source != sequence.request.source or sequence.must_read_source
        is_new_source = self._loaded.is_encoder_decoder and is_other_source
        prompt = [*request.decoder_prompt_ids, *target_ids]
        if not self._loaded.is_encoder_decoder:
            prompt = [*request.source.ids, *prompt]
        read = [*sequence.prompt, *(sequence.added_ids or ())][: sequence.num_cached]
        num_kept = 0 if is_new_source else num_common(read, prompt[:-1])
        if is_new_source:
            self._cache.clear(sequence.slot, sequence.num_written, sequence.source_length)
            sequence.source_length = request.source_length
            sequence.combiner = new_combiner(self._loaded, request, request.capture)
        else:
            self._cache.take_back(sequence.slot, num_kept, sequence.num_written)
            if sequence.combiner is not None:
                sequence.combiner.take_back(num_kept)
        self._factors.take_back(sequence.slot, num_kept, 0 if is_new_source else sequence.source_length)
        sequence.special = find_special(self._loaded, request, target_ids)
        sequence.request, sequence.prompt, sequence.added_ids, sequence.next_logits = request, prompt, [], None
        sequence.num_cached, sequence.num_steps = num_kept, len(target_ids)
        sequence.must_read_source = is_new_source and is_read_whole
        return is_new_source and not is_read_whole

    def _read_groups(self, sequences: list[Sequence]) -> dict[Sequence, Exception]:
        faults: dict[Sequence, Exception] = {}
        for group in _by_length(sequences):
            faults |= self._read_group(group)
        return faults

    def _read_group(self, group: list[Sequence]) -> dict[Sequence, Exception]:
        """Reads sources in one pass, and one by one where the pass fails."""
        try:
            lengths = {sequence.slot: sequence.source_length for sequence in group}
            self._backend.prefill_sources(self._sources(group), lengths, self._cache)
        except Exception as error:
            if len(group) == 1:
                return {group[0]: release_memory_of(error)}
            faults: dict[Sequence, Exception] = {}
            for sequence in group:
                faults |= self._read_group([sequence])
            return faults
        return {}

    def _sources(self, group: list[Sequence]) -> Tensor:
        """The sources of a pass: tokens with padding, or features of recordings, which all have one length."""
        features = [sequence.request.features for sequence in group]
        if features[0] is not None:
            recordings = [features_tensor(recording, self._loaded.model) for recording in features if recording]
            return torch.cat(recordings)
        longest = max(sequence.source_length for sequence in group)
        ids = [
            [*sequence.request.source.ids, *([self._padding] * (longest - sequence.source_length))]
            for sequence in group
        ]
        return int_tensor(ids, self._device)

    def source_attention(
        self, request: Request, combiner: RowCombiner | None = None
    ) -> Iterator[AttentionArrays] | None:
        """The encoder self-attention of a request, from a pass of its own, which the `combiner` reads.

        Raises RequestError.
        """
        return SingleSequenceModel.of_request(self._loaded, request, combiner).encode()

    def read_prompt(self, sequence: Sequence) -> None:
        """Reads the next chunk of a prompt."""
        begin = sequence.num_cached
        ids = sequence.prompt[begin : begin + min(_CHUNK, sequence.num_pending)]
        self._cache.begin_prefill(sequence.slot, begin, len(ids), sequence.source_length)
        positions: dict[AttentionKind, int] = {"cross": sequence.source_length, "decoder_self": begin + len(ids)}
        # A combiner needs the rows of all queries.
        recorder = None
        if sequence.combiner is not None:
            recorder = PassRecorder(sequence.plan.recorded, ALL_QUERIES, positions)
        with record_to(recorder, padded=False):
            self._backend.prefill(int_tensor([ids], self._device), self._cache)
        if recorder is not None:
            combine_prompt(sequence, recorder)
        sequence.num_cached += len(ids)


def combine_prompt(sequence: Sequence, recorder: PassRecorder) -> None:
    """Gives the combiner of a sequence the rows of a part of the prompt. Raises RequestError."""
    assert sequence.combiner is not None
    kinds: tuple[AttentionKind, ...] = ("cross", "decoder_self")
    found: dict[AttentionKind, AttentionTensors] = {
        kind: tensors for kind in kinds if (tensors := recorder.result(kind)) is not None
    }
    arrays = to_host([tensor for tensors in found.values() for tensor in list_tensors(tensors)])
    recorded: dict[AttentionKind, AttentionArrays] = {}
    for (kind, tensors), values in zip(found.items(), arrays, strict=True):  # one tensor of each kind: dense floats
        rows = build_arrays(tensors, [values], sequence.plan.recorded.shape(kind))
        if rows is None or not rows.is_finite():
            raise not_a_number()
        recorded[kind] = rows
    if recorded:
        sequence.combiner.read_target(recorded, sequence.left_out)


def _by_length(sequences: list[Sequence]) -> Iterator[list[Sequence]]:
    """Groups of sequences with sources of similar length, each of a bounded number of tokens with its padding."""
    group: list[Sequence] = []
    for sequence in sorted(sequences, key=lambda sequence: sequence.source_length):
        if group and (len(group) + 1) * sequence.source_length > MAX_PREFILL_TOKENS:
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group
