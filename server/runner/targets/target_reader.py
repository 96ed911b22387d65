"""Reads whole given targets of several requests in one pass, each as if it were alone.

Targets of similar length are read together. A request whose pass has failed together with others runs by itself then,
so that its fault is its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....kernels import AttentionTensors
from ...capture import (
    AttentionArrays,
    AttentionKind,
    CapturePlan,
    LayerKey,
    PassRecorder,
    RecordTarget,
    build_arrays,
    list_batch_tensors,
    record_to,
)
from ...errors import not_a_number
from ...memory import release_memory_of
from ...models import Backend, KVCache, LoadedModel, TargetBatch
from ...request import MAX_PART_BYTES, OBSERVERS, EncodedTarget, EncoderStates, Observer
from ...sampling import step_scores
from ...transfer import int_tensor, to_device, to_host
from ..single_sequence import features_tensor, find_special
from .encoder_states import read_states
from .given_tokens import GivenTokens
from .target_pass import TargetOutput, TargetPass

# The most tokens of a pass that gives logits for all of them at once, because the model has no LM head of its own.
_LOGITS_TOKENS = 1024

# For how many tokens the LM head computes logits at once, if one target has no more.
_HEAD_ROWS = 256

_KINDS: tuple[AttentionKind, ...] = ("cross", "decoder_self")


class _Group(NamedTuple):
    """The passes of a batch that have the same plan, and where their rows are recorded."""

    plan: CapturePlan
    observer: Observer | None  # what the rows are for; None: they are for the clients
    rows: list[int]  # of the batch
    queries: slice  # the recorded ones
    recorder: PassRecorder


class _Recorders(NamedTuple):
    """A `Recorder` of all groups of a batch."""

    groups: list[_Group]

    def targets(
        self, layer_key: LayerKey, shape: tuple[int, int, int, int], device: torch.device
    ) -> list[RecordTarget]:
        """As `Recorder` has it."""
        return [target for group in self.groups for target in group.recorder.targets(layer_key, shape, device)]


class TargetReader:
    """Runs the passes of several given targets as one, by the backend of a model."""

    def __init__(self, loaded: LoadedModel, backend: Backend, cache: KVCache) -> None:
        """`cache` is that of the sequences of passes."""
        self._loaded = loaded
        self._backend = backend
        self._cache = cache
        self._device = loaded.model.device
        self._padding: int = loaded.model.config.pad_token_id or 0
        self.max_tokens = backend.max_prefill_tokens
        if backend.lm_head is None:
            self.max_tokens = min(self.max_tokens, _LOGITS_TOKENS)

    def read(self, passes: Sequence[TargetPass], max_tokens: int) -> list[TargetPass]:
        """Runs some of the passes together, the first among them, and gives them their results. Returns these passes.

        `max_tokens` bounds the tokens of the sources, and those of the targets, with their padding; the first pass
        runs however long it is. All passes must be ones that can be shared, or have a sequence. The list is empty where
        running them together has failed. Then each runs alone: passes with a sequence in later calls of this method,
        others by their own `decode`.
        """
        batch = _choose(passes, max_tokens)
        try:
            results = self._run_all(batch)
        except Exception as error:
            error = release_memory_of(error)
            if batch[0].sequence is None or len(batch) > 1:
                for target_pass in batch:
                    target_pass.can_share = False
                return []
            results = [error]
        for target_pass, result in zip(batch, results, strict=True):
            target_pass.result = result
            if (sequence := target_pass.sequence) is not None:
                sequence.num_cached = len(sequence.prompt) - 1  # the next step reads the last token
                sequence.must_read_source = False
                self._cache.end_read(sequence.slot, sequence.num_cached, sequence.source_length)
        return batch

    def _run_all(self, batch: Sequence[TargetPass]) -> list[TargetOutput | EncoderStates | Exception]:
        """Runs the passes: those of the encoder alone, and those of encoder and decoder."""
        is_encoded = [isinstance(target_pass.request.target, EncodedTarget) for target_pass in batch]
        if not any(is_encoded):
            return [*self._run(batch)]
        alone = [target_pass.request for target_pass, each in zip(batch, is_encoded, strict=True) if each]
        others = [target_pass for target_pass, each in zip(batch, is_encoded, strict=True) if not each]
        states = iter(read_states(self._loaded, self._backend, alone))
        outputs = iter(self._run(others) if others else ())
        return [next(states) if each else next(outputs) for each in is_encoded]

    def _run(self, batch: Sequence[TargetPass]) -> list[TargetOutput | Exception]:
        groups = self._make_groups(batch)
        has_scores = any(target_pass.request.scores for target_pass in batch)
        layer_keys = [key for group in groups for key in group.plan.layer_specs if key.kind in _KINDS]
        if batch[0].sequence is not None:  # the keys and values of all layers are kept
            layer_keys.append(self._last_attention)
        output: Tensor | None = None
        if has_scores or layer_keys:
            # In a layer, cross-attention comes last.
            last = max(layer_keys, key=lambda key: (key.layer, key.kind == "cross"), default=None)
            inputs = self._make_inputs(batch, None if has_scores else last)
            with record_to(_Recorders(groups), padded=inputs.is_padded):
                output = self._backend.read_targets(inputs)
        scored = [*self._scores(batch, output)] if has_scores and output is not None else []
        recorded: list[tuple[_Group, AttentionKind, AttentionTensors]] = [
            (group, kind, tensors)
            for group in groups
            for kind in _KINDS
            if (tensors := group.recorder.result(kind)) is not None
        ]
        arrays = iter(
            to_host(
                [
                    *(tensor for _, *tensors in scored for tensor in tensors),
                    *(tensor for _, _, tensors in recorded for tensor in list_batch_tensors(tensors)),
                ]
            )
        )
        scores = {row: (next(arrays), next(arrays)) for row, *_ in scored}
        found: dict[int, dict[AttentionKind | Observer, AttentionArrays]] = {}
        for group, kind, tensors in recorded:
            copies = [next(arrays) for _ in list_batch_tensors(tensors)]
            for number, row in enumerate(group.rows):
                whole = build_arrays(tensors, [copy[number] for copy in copies], group.plan.shape(kind))
                assert whole is not None
                kept = _kept_queries(batch[row].tokens, group.plan, group.observer)
                cut = _cut(whole, batch[row], kind, kept, group.queries.start)
                found.setdefault(row, {})[group.observer or kind] = cut
        return [_result(target_pass, scores.get(row), found.get(row, {})) for row, target_pass in enumerate(batch)]

    def _make_groups(self, batch: Sequence[TargetPass]) -> list[_Group]:
        """The passes whose rows are recorded, those with equal plans together."""
        rows_of: list[tuple[CapturePlan, Observer | None, list[int]]] = []
        for row, target_pass in enumerate(batch):
            for observer, plan in _plans(target_pass):
                same = (rows for other, name, rows in rows_of if name == observer and (other is plan or other == plan))
                rows = next(same, None)
                if rows is None:
                    rows_of.append((plan, observer, [row]))
                else:
                    rows.append(row)
        positions: dict[AttentionKind, int] = {
            "cross": max(target_pass.request.source_length for target_pass in batch),
            "decoder_self": max(len(target_pass.tokens.read) for target_pass in batch),
        }
        groups: list[_Group] = []
        for plan, observer, rows in rows_of:
            kept = [_kept_queries(batch[row].tokens, plan, observer) for row in rows]
            queries = slice(min(each.start for each in kept), max(each.stop for each in kept))
            left_out = self._left_out([batch[row] for row in rows], positions) if plan.leaves_out_special else None
            selection = None if len(rows) == len(batch) else int_tensor(rows, self._device)
            recorder = PassRecorder(plan, queries, positions, selection, len(rows), left_out)
            groups.append(_Group(plan, observer, rows, queries, recorder))
        return groups

    def _left_out(
        self, passes: Sequence[TargetPass], positions: dict[AttentionKind, int]
    ) -> dict[AttentionKind, Tensor]:
        """The special tokens of some passes, bool `[passes, positions]` by kind."""
        masks: dict[AttentionKind, NDArray[np.bool_]] = {
            kind: np.zeros((len(passes), count), np.bool_) for kind, count in positions.items()
        }
        for row, target_pass in enumerate(passes):
            special = find_special(self._loaded, target_pass.request)
            assert special is not None
            for kind, mask in masks.items():
                own = special.mask(kind)[: positions[kind]]
                mask[row, : len(own)] = own
        return {kind: to_device(mask, self._device) for kind, mask in masks.items()}

    def _make_inputs(self, batch: Sequence[TargetPass], last_attention: LayerKey | None) -> TargetBatch:
        requests = [target_pass.request for target_pass in batch]
        reads = [target_pass.tokens.read for target_pass in batch]
        targets, lengths = self._pad(reads), [*map(len, reads)]
        slots = [target_pass.sequence.slot for target_pass in batch if target_pass.sequence is not None]
        kept = last_attention, self._cache if slots else None, slots
        if not self._loaded.is_encoder_decoder:
            return TargetBatch(None, [0] * len(batch), targets, lengths, *kept)
        features = [request.features for request in requests if request.features is not None]
        if features:
            sources = torch.cat([features_tensor(each, self._loaded.model) for each in features])
        else:
            sources = self._pad([request.source.ids for request in requests])
        return TargetBatch(sources, [request.source_length for request in requests], targets, lengths, *kept)

    @property
    def _last_attention(self) -> LayerKey:
        kind: AttentionKind = "cross" if self._loaded.is_encoder_decoder else "decoder_self"
        return LayerKey(kind, self._loaded.attention_layers.num_layers(kind) - 1)

    def _pad(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Tokens as a batch with padding, int64 `[B, longest]`."""
        longest = max(map(len, rows))
        return int_tensor([[*row, *([self._padding] * (longest - len(row)))] for row in rows], self._device)

    def _scores(self, batch: Sequence[TargetPass], output: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the number of each pass with scores, its scores `[steps, scores]`, and the maximum of each logit row.

        `output` is what the backend gave. The maximum of a row is NaN where any number of the row is.
        """
        rows = [row for row, target_pass in enumerate(batch) if target_pass.request.scores]
        while rows:
            part = [rows.pop(0)]
            while rows and sum(batch[row].tokens.num_scored for row in (*part, rows[0])) <= _HEAD_ROWS:
                part.append(rows.pop(0))
            tokens = [batch[row].tokens for row in part]
            hidden = [output[row, each.scored] for row, each in zip(part, tokens, strict=True)]
            lm_head, together = self._backend.lm_head, torch.cat(hidden)
            logits = together if lm_head is None else lm_head.logits(together)
            for row, own in zip(part, logits.split([*map(len, hidden)]), strict=True):
                wanted = batch[row].tokens.ids[batch[row].tokens.first_step :]
                request, targets = batch[row].request, int_tensor(wanted, self._device)
                scores = step_scores(request.scores, own, targets, request.score_top_p)
                yield row, scores.float(), own.amax(-1).float()


def _choose(passes: Sequence[TargetPass], max_tokens: int) -> list[TargetPass]:
    """Chooses the passes of a batch: the first, and those that are nearest to it in length, as far as there is room.

    A pass is padded to the longest target and the longest source of its batch.
    """
    first = passes[0]
    others = [other for other in passes[1:] if first.goes_with(other)]
    others.sort(key=lambda other: abs(other.num_tokens - first.num_tokens))
    chosen: list[TargetPass] = []
    source = target = cross_bytes = own_bytes = 0
    first_row, last_row = math.inf, 0  # the recorded queries of a batch
    for target_pass in (first, *others):
        request, tokens = target_pass.request, target_pass.tokens
        sizes = max(source, request.source_length), max(target, len(tokens.read))
        rows = tokens.all_queries
        span = (min(first_row, rows.start), max(last_row, rows.stop)) if tokens.steps else (first_row, last_row)
        plans = (request.capture, *request.observed.values())
        cross, own = (sum(plan.row_bytes(kind, 1) for plan in plans if kind in plan.kinds) for kind in _KINDS)
        num_rows = max(0, span[1] - span[0])
        num_bytes = num_rows * (sizes[0] * (cross_bytes + cross) + sizes[1] * (own_bytes + own))
        has_room = (len(chosen) + 1) * max(sizes) <= max_tokens and num_bytes <= MAX_PART_BYTES
        if chosen and not has_room:
            break
        chosen.append(target_pass)
        (source, target), (first_row, last_row) = sizes, span
        cross_bytes, own_bytes = cross_bytes + cross, own_bytes + own
    return chosen


def _plans(target_pass: TargetPass) -> Iterator[tuple[Observer | None, CapturePlan]]:
    """What is recorded of a pass: for its observers, and for its client."""
    request = target_pass.request
    yield from request.observed.items()
    if request.capture.recorded.kinds and target_pass.tokens.steps:
        yield None, request.capture.recorded


def _kept_queries(tokens: GivenTokens, plan: CapturePlan, observer: Observer | None) -> slice:
    """The queries of a whole target whose rows are kept."""
    return tokens.all_queries if observer is None else tokens.observed_queries(plan.row, 0, len(tokens.read))


def _cut(
    whole: AttentionArrays, target_pass: TargetPass, kind: AttentionKind, kept: slice, first_query: int
) -> AttentionArrays:
    """Copies the `kept` rows and the positions of one pass out of those of a batch, which begin at `first_query`."""
    length = target_pass.request.source_length if kind == "cross" else len(target_pass.tokens.read)
    return whole.copy_queries(slice(kept.start - first_query, kept.stop - first_query), length)


def _result(
    target_pass: TargetPass,
    scored: tuple[NDArray[Any], NDArray[Any]] | None,
    rows: dict[AttentionKind | Observer, AttentionArrays],
) -> TargetOutput | Exception:
    """What a pass gives, or that it has given NaN or infinity. `scored` are its scores, and the maxima of logits."""
    tokens = target_pass.tokens
    scores = np.empty((tokens.num_scored, 0), np.float32) if scored is None else scored[0].copy()
    numbers = [*rows.values(), *(AttentionArrays(array) for array in scored or ())]
    if not all(array.is_finite() for array in numbers):
        return not_a_number()
    first_row = max(tokens.steps.start, -tokens.first_query)
    observed: dict[Observer, AttentionArrays] = {name: rows[name] for name in OBSERVERS if name in rows}
    cross, decoder_self = rows.get("cross"), rows.get("decoder_self")
    return TargetOutput(tokens.first_step, scores, first_row, cross, decoder_self, tokens.first_query, observed)
