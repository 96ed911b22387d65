"""One decode step of the sequences in some slots: forward pass, next tokens, scores, attention rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from ..capture import AttentionArrays, AttentionKind, FactorCache, record_to
from ..memory import is_out_of_memory, release_memory_of
from ..models import Backend, KVCache
from ..request import Observer, Score
from ..sampling import ContrastLogits, Sampler, SamplerOutput, step_scores
from ..transfer import cached_index, to_host
from .sequence import Sequence, StepOutput
from .slot_allocator import SlotAllocator
from .step_recorder import StepAttention, StepRecorder

_NO_ATTENTION: StepAttention = {}


class _Step(NamedTuple):
    """The slots that a decode step runs, and the longest target and source that it attends to."""

    slots: slice
    length: int
    source_length: int
    is_uniform: bool  # whether all sequences in these slots have these lengths: then no mask is needed


class DecodeStep:
    """Takes the decode steps of one runner, on the runner's own backend, cache, sampler, slots and tokens."""

    def __init__(
        self,
        backend: Backend,
        cache: KVCache,
        sampler: Sampler,
        slots: SlotAllocator,
        tokens: Tensor,
        factors: FactorCache,
    ) -> None:
        """`tokens` are the tokens that the decoder reads next, by slot, int64 `[slots, 1]`. Each step replaces them."""
        self._backend = backend
        self._cache = cache
        self._sampler = sampler
        self._slots = slots
        self._tokens = tokens
        self._factors = factors
        self.chosen: SamplerOutput | None = None  # what the step under way has chosen
        self._has_ended = False  # whether the step under way has changed its sequences
        self.log_probs: Tensor | None = None  # of the last step, by slot: see `SamplerOutput.log_probs`

    @property
    def can_repeat(self) -> bool:
        """Whether another attempt may follow after a step that has failed. It must get what was `chosen`."""
        return not self._has_ended and (self.chosen is not None or not self._sampler.has_begun)

    def run(
        self, batch: list[Sequence], chosen: SamplerOutput | None = None
    ) -> list[tuple[Sequence, StepOutput | Exception]]:
        """Takes one step of some sequences, in the order of their slots: what it gave each, or what went wrong.

        `chosen` is what a former attempt at the step has chosen, for these sequences among others. Raises what goes
        wrong in a part that all sequences share.
        """
        self.chosen, self.log_probs, self._has_ended = chosen, None, False
        self._sampler.has_begun = False
        step = self._plan_step(batch)
        self._cache.begin_decode(step.slots, step.length, step.source_length, is_uniform=step.is_uniform)
        tokens = self._tokens[step.slots]
        positions: dict[AttentionKind, int] = {"cross": step.source_length, "decoder_self": step.length}
        recorder = StepRecorder(
            batch,
            step.slots,
            positions,
            tokens,
            self._factors,
            writes_selected_rows=self._backend.writes_selected_rows,
        )
        logits, chosen = self._forward(step, batch, tokens, recorder)
        self.log_probs = chosen.log_probs
        # A fault of a logits processor is its request's alone.
        failed = self._sampler.errors
        faults: dict[Sequence, Exception] = {
            sequence: failed[sequence.slot] for sequence in batch if sequence.slot in failed
        }
        sound = [sequence for sequence in batch if sequence not in faults]
        scored = [] if logits is None else _score(sound, logits, step.slots.start, chosen.tokens)
        return self._collect(step, batch, chosen, scored, recorder, faults)

    def _plan_step(self, batch: list[Sequence]) -> _Step:
        """What a step of these sequences runs. `batch` is in the order of slots."""
        if self._backend.is_compiled:  # for one shape
            return _Step(slice(0, len(self._tokens)), *self._backend.lengths, is_uniform=False)
        first, end = batch[0].slot, batch[-1].slot + 1
        if contrasts := [sequence.contrast.slot for sequence in batch if sequence.contrast is not None]:
            first, end = min(first, *contrasts), max(end, *(slot + 1 for slot in contrasts))
        # The slots in between run as well: what they compute is not looked at.
        present = [sequence for slot, sequence in self._slots.sequences.items() if first <= slot < end]
        length = max(sequence.num_cached for sequence in present) + 1
        source_length = max(sequence.source_length for sequence in present)
        is_uniform = all(
            sequence.num_cached + 1 == length and sequence.source_length == source_length for sequence in present
        )
        return _Step(slice(first, end), length, source_length, is_uniform)

    def _forward(
        self, step: _Step, batch: list[Sequence], tokens: Tensor, recorder: StepRecorder
    ) -> tuple[Tensor | None, SamplerOutput]:
        """Runs the model and chooses tokens. Returns the logits of the step's slots, or None if they are not needed.

        Where a former attempt at the step has chosen tokens, only the model runs.
        """
        first, end = step.slots.start, step.slots.stop
        active = [sequence.slot for sequence in batch]
        keeps_logits = any(sequence.request.scores for sequence in batch)  # scores come from the model's own logits
        lm_head = self._backend.lm_head
        query = None
        if self.chosen is None and not keeps_logits:
            query = self._sampler.argmax_query(lm_head, first, end, active)
        with record_to(recorder, padded=False):
            output = self._backend.decode(tokens, self._cache, query)
        if query is not None:
            self.chosen = self._sampler.accept_argmax(query, active)
        if self.chosen is not None and not keeps_logits:
            return None, self.chosen
        logits = output if lm_head is None else lm_head.logits(output)
        if self.chosen is None:
            self.chosen = self._sampler.sample(logits, active, first=first, keep_logits=keeps_logits)
        return logits, self.chosen

    def _follow(self, batch: list[Sequence], chosen: Tensor) -> None:
        """Hands the chosen tokens, int64 `[slots]`, to the sequences of contrasts, which read them at the next step."""
        followed = [sequence for sequence in batch if sequence.contrast is not None]
        if not followed:
            return
        contrasts = [member for sequence in followed for member in sequence.members[1:]]
        slots = cached_index(tuple(contrast.slot for contrast in contrasts), chosen.device)
        chosen_by = cached_index(tuple(sequence.slot for sequence in followed), chosen.device)
        self._tokens[slots] = chosen[chosen_by, None]
        self._cache.advance(slots)
        for contrast in contrasts:
            contrast.num_cached += 1

    def _collect(
        self,
        step: _Step,
        batch: list[Sequence],
        chosen: SamplerOutput,
        scored: list[tuple[list[Sequence], Tensor]],
        recorder: StepRecorder,
        faults: dict[Sequence, Exception],
    ) -> list[tuple[Sequence, StepOutput | Exception]]:
        """Copies what a step gave to the host, in one wait, and hands the chosen tokens to the next step."""
        slots = step.slots
        # Contiguous slots are a view, without a copy.
        is_contiguous = len(batch) == slots.stop - slots.start
        slot_ids = tuple(sequence.slot for sequence in batch)
        index = slots if is_contiguous else cached_index(slot_ids, self._tokens.device)
        tokens = chosen.tokens[index]
        candidates = [] if chosen.has_candidates is None else [chosen.has_candidates[index]]
        ids, finite, *arrays = to_host(
            [tokens, chosen.is_finite[index], *candidates, *(scores for _, scores in scored), *recorder.tensors]
        )
        has_candidates, arrays = arrays[: len(candidates)], arrays[len(candidates) :]
        scores: dict[Sequence, list[float]] = {}
        for (group, _), values in zip(scored, arrays, strict=False):
            scores |= zip(group, values.tolist(), strict=True)
        attention = recorder.attention(arrays[len(scored) :], faults)
        self._has_ended = True
        self._tokens[index] = tokens[:, None]
        self._cache.advance(index)
        self._follow(batch, chosen.tokens)
        outputs: list[tuple[Sequence, StepOutput | Exception]] = []
        drawable: list[bool] = has_candidates[0].tolist() if has_candidates else [True] * len(batch)
        for sequence, token, is_finite, can_draw in zip(batch, ids.tolist(), finite.tolist(), drawable, strict=True):
            kinds = attention.get(sequence, _NO_ATTENTION)
            output = StepOutput(
                sequence.num_steps,
                token,
                token in sequence.end_ids,
                is_finite,
                can_draw,
                scores.get(sequence, ()),
                kinds.get("cross"),
                kinds.get("decoder_self"),
                _observed(sequence, kinds),
            )
            sequence.count_step(token)
            outputs.append((sequence, faults.get(sequence, output)))
        return outputs


class StepAttempts:
    """Takes a decode step of many sequences, in parts where it fails: by the `DecodeStep` of a runner."""

    def __init__(self, step: DecodeStep, num_slots: int) -> None:
        self._step = step
        self._num_slots = self._safe_size = num_slots  # sequences of a step for which memory suffices

    def grow(self) -> None:
        """Lets later steps be larger again."""
        self._safe_size = min(2 * self._safe_size, self._num_slots)

    def run(self, sequences: list[Sequence]) -> Iterator[list[tuple[Sequence, StepOutput | Exception]]]:
        """Yields what each part of the step gave its sequences, or what went wrong.

        An error is met by parts of half as many sequences, down to one, where it can be.
        """
        remaining = sorted(sequences, key=lambda sequence: sequence.slot)
        size = len(remaining)  # an error that is not of memory makes no later step smaller
        chosen, num_chosen = None, 0  # by an attempt that failed later on, for the first of the remaining sequences
        while remaining:
            batch = remaining[: min(size, self._safe_size, num_chosen or size)]
            results: list[tuple[Sequence, StepOutput | Exception]]
            try:
                results = self._step.run(batch, chosen)
            except Exception as error:
                if len(batch) > 1 and self._step.can_repeat:
                    size = len(batch) // 2
                    if is_out_of_memory(error):
                        self._safe_size = size
                    if chosen is None and self._step.chosen is not None:
                        chosen, num_chosen = self._step.chosen, len(batch)
                    continue
                fault = release_memory_of(error)
                results = [(sequence, fault) for sequence in batch]
            yield results
            del remaining[: len(batch)]
            num_chosen = max(0, num_chosen - len(batch))
            chosen = chosen if num_chosen else None


def _observed(sequence: Sequence, rows: StepAttention) -> Mapping[Observer, AttentionArrays]:
    """What a step recorded for the observers of a sequence."""
    observed = sequence.request.observed
    return {name: rows[name] for name in observed if name in rows} if observed else {}


def _score(
    sequences: list[Sequence], logits: Tensor, first: int, tokens: Tensor
) -> list[tuple[list[Sequence], Tensor]]:
    """The scores of a step, `[sequences, scores]` for sequences that ask for the same.

    `logits` are those of the slots from `first` on; `tokens` are by slot. A followed sequence keeps its logits until
    its client gives the token.
    """
    groups: dict[tuple[tuple[Score, ...], float, tuple[float, int] | None], list[Sequence]] = {}
    for sequence in sequences:
        request = sequence.request
        if request.scores and sequence.is_followed:
            sequence.next_logits = logits[sequence.slot - first].clone()[None]
        elif request.scores:
            contrast = request.contrast
            kl_options = None if contrast is None else (contrast.kl_top_p, contrast.kl_top_k)
            groups.setdefault((request.scores, request.score_top_p, kl_options), []).append(sequence)
    scored: list[tuple[list[Sequence], Tensor]] = []
    for (names, top_p, kl_options), group in groups.items():
        slots = cached_index(tuple(sequence.slot for sequence in group), logits.device)
        rows = cached_index(tuple(sequence.slot - first for sequence in group), logits.device)
        contrast = None
        if kl_options is not None:
            others = tuple(member.slot - first for sequence in group for member in sequence.members[1:])
            contrast = ContrastLogits(logits[cached_index(others, logits.device)], tokens[slots], *kl_options)
        scored.append((group, step_scores(names, logits[rows], tokens[slots], top_p, contrast)))
    return scored
