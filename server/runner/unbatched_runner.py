"""Runs the sequences of a model that cannot be run in slots: each with a cache of its own, one at a time.

Such a model's cache is of a kind that `models.kv_cache` does not know, or the model gives attention only as whole
matrices, or no backend has the model's own logits. Has the interface of `ModelRunner`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..capture import AttentionArrays
from ..memory import release_memory_of
from ..models import LoadedModel
from ..request import Contrast, GivenTarget, Request
from ..sampling import ContrastLogits, Sampler, step_scores
from ..transfer import to_host
from .beams import UnbatchedBeams, make_search
from .forward_output import ForwardOutput
from .sequence import BeamGroup, DecodeOutput, Rewind, Sequence, StepOutput, accept_token, add_each
from .single_sequence import ALL_QUERIES, LAST_QUERY, NO_QUERIES, SingleSequenceModel, find_special
from .targets import TargetPass


@dataclass(eq=False)
class _State:
    """What a sequence keeps between its steps."""

    model: SingleSequenceModel
    sampler: Sampler  # for this sequence alone, in slot 0; of a beam search in as many slots as it is wide
    pending: Tensor  # tokens that the decoder reads next, int64 `[1, count]`: the prompt, then one token
    contrast: SingleSequenceModel | None = None  # the same tokens in the context of a contrast
    beams: UnbatchedBeams | None = None  # the hypotheses of a beam search


class UnbatchedRunner:
    """The sequences of one model. For the engine's thread, in torch's inference mode. A `Runner`."""

    max_given_tokens = 0  # each target is read by itself
    max_batch_size = 1  # one forward pass at a time, so that the engine can turn to other requests in between

    def __init__(self, loaded: LoadedModel, max_sequences: int) -> None:
        self._loaded = loaded
        self._max_sequences = max_sequences
        self._states: dict[Sequence, _State] = {}

    @property
    def num_free_slots(self) -> int:
        """How many sequences can be added."""
        running = (sequence for sequence in self._states if not sequence.is_preempted)
        return self._max_sequences - sum(sequence.request.num_sequences for sequence in running)

    def add(self, requests: list[Request], *, reads_sources: bool = True) -> list[Sequence | Exception]:
        """Reads the source of each request, or says why it cannot be read. Without `reads_sources`, `rewind` does."""
        return add_each(requests, lambda request: self._add(request, reads_source=reads_sources))

    def _add(self, request: Request, *, reads_source: bool) -> Sequence:
        params = request.target
        assert not isinstance(params, GivenTarget)
        model = SingleSequenceModel.of_request(self._loaded, request)
        sampler = self._new_sampler(request, model.prompt)
        attention = model.encode() if reads_source else None  # last: what comes before it takes no time
        # The first step reads the whole prompt: nothing of it is pending.
        sequence = Sequence(request, params, request.capture, model.source_length, [], sampler.end_ids(0))
        sequence.source_attention, sequence.must_read_source = attention, not reads_source
        state = self._states[sequence] = _State(model, sampler, model.tensor(model.prompt))
        if request.beam is not None:
            group = BeamGroup(make_search(self._loaded, sequence), [sequence] * request.beam.width)
            state.beams = UnbatchedBeams(model, sampler, group)
        elif request.contrast is not None:
            state.contrast = SingleSequenceModel.of_request(self._loaded, request.contrast.request)
            state.contrast.encode()
        return sequence

    def _new_sampler(self, request: Request, prompt: list[int]) -> Sampler:
        params = request.target
        assert not isinstance(params, GivenTarget)
        num_slots = 1 if request.beam is None else request.beam.width
        sampler = Sampler(self._loaded, num_slots, len(prompt) + params.max_new_tokens)
        sampler.add(0, params, prompt, request.source.ids if self._loaded.is_encoder_decoder else None)
        return sampler

    def rewind(self, rewinds: list[Rewind]) -> dict[Sequence, Exception]:
        """Puts sequences of follow streams behind other sources or targets. Returns what went wrong, by sequence.

        The next step reads the whole target again: not every cache of transformers can forget its last tokens.
        """
        faults: dict[Sequence, Exception] = {}
        for rewind in rewinds:
            try:
                self._rewind(*rewind[:3])
            except Exception as error:  # noqa: PERF203  # one request's fault must not end the others
                faults[rewind.sequence] = release_memory_of(error)
        return faults

    def _rewind(self, sequence: Sequence, request: Request, target_ids: list[int]) -> None:
        state = self._states[sequence]
        if request.source != sequence.request.source or sequence.must_read_source:
            state.model = SingleSequenceModel.of_request(self._loaded, request)
            state.model.encode()
            sequence.source_length, sequence.must_read_source = state.model.source_length, False
        state.model.forget_target(find_special(self._loaded, request, target_ids))
        state.sampler = self._new_sampler(request, state.model.prompt)
        state.sampler.continue_from(0, state.model.prompt, target_ids)
        state.pending = state.model.tensor([*state.model.prompt, *target_ids])
        sequence.request, sequence.added_ids, sequence.next_logits = request, [], None
        sequence.num_steps = len(target_ids)

    def accept(self, sequence: Sequence, id_: int) -> list[float]:
        """Takes the next token of a followed sequence from its client. Returns the scores of the token."""
        state = self._states[sequence]
        state.pending = state.model.tensor([id_])
        state.model.add_token(id_)
        return accept_token(sequence, id_)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, and with it its cache."""
        del self._states[sequence]
        sequence.is_preempted = False

    def preempt(self, sequence: Sequence) -> None:
        """Makes room for another sequence. The cache stays where it is."""
        sequence.is_preempted = True

    def resume(self, sequence: Sequence) -> None:
        """Counts a preempted sequence as one that runs again."""
        sequence.is_preempted = False

    def cache_bytes(self, sequence: Sequence) -> int:  # noqa: ARG002
        """How many bytes preempting takes: none, since the cache stays where it is."""
        return 0

    def prefill(self, sequence: Sequence) -> None:
        """Never called: the first step of a sequence reads its whole prompt."""
        raise NotImplementedError

    def source_attention(self, request: Request) -> Iterator[AttentionArrays] | None:
        """The encoder self-attention of a request once more, by another pass of its source. Raises RequestError."""
        return SingleSequenceModel.of_request(self._loaded, request).encode()

    def target_pass(self, request: Request) -> TargetPass:
        """The forward passes of a request whose target is given."""
        return TargetPass(self._loaded, request)

    def catch_up_pass(self, rewind: Rewind) -> TargetPass | None:  # noqa: ARG002
        """None: the next step of a sequence reads all tokens that the sequence has not read."""
        return None

    def read_targets(self, passes: list[TargetPass], max_tokens: int) -> list[TargetPass]:
        """Never called: each target is read by itself."""
        raise NotImplementedError

    def decode(self, sequences: list[Sequence]) -> list[tuple[Sequence, DecodeOutput]]:
        """Takes one step of some sequences: what it gave each, or what went wrong.

        A sequence that stands for a beam search gets nothing before the search has ended.
        """
        outputs: list[tuple[Sequence, DecodeOutput]] = []
        for sequence in sequences:
            try:
                beams = self._states[sequence].beams
                output = self._decode(sequence) if beams is None else beams.run()
                if output is not None:
                    outputs.append((sequence, output))
            except Exception as error:  # noqa: PERF203  # one request's fault must not end the others
                outputs.append((sequence, release_memory_of(error)))
        return outputs

    def _decode(self, sequence: Sequence) -> StepOutput:
        state, request = self._states[sequence], sequence.request
        output = self._forward(sequence)
        chosen = state.sampler.sample(output.logits, (0,))
        if state.sampler.errors:
            raise state.sampler.errors[0]
        contrast = _contrast_logits(state, request.contrast, chosen.tokens)
        names = () if sequence.is_followed else request.scores
        scores = step_scores(names, output.logits, chosen.tokens, request.score_top_p, contrast)
        if sequence.is_followed and request.scores:
            sequence.next_logits = output.logits
        candidates = torch.ones_like(chosen.is_finite) if chosen.has_candidates is None else chosen.has_candidates
        # What the model needs for its next step stays on its device; the rest is copied in one wait.
        token, finite, left, values, *arrays = to_host(
            [chosen.tokens, chosen.is_finite, candidates, scores, *output.tensors, *output.observed_tensors]
        )
        rows = state.model.attention(output, arrays[: len(output.tensors)])
        attention = {kind: array.copy_query(-1) for kind, array in rows.items()} if sequence.wants_row else {}
        observed = output.observed_rows(arrays[len(output.tensors) :])
        index, id_ = sequence.num_steps, int(token.item())
        if not sequence.is_followed:
            state.pending = chosen.tokens[:, None]
            sequence.num_steps += 1
            state.model.add_token(id_)
            if sequence.added_ids is not None:
                sequence.added_ids.append(id_)
        return StepOutput(
            index,
            id_,
            id_ in sequence.end_ids,
            bool(finite.item()),
            bool(left.item()),
            values[0].tolist(),
            attention.get("cross"),
            attention.get("decoder_self"),
            {name: rows.query(0) for name, rows in observed.items()},
        )

    def _forward(self, sequence: Sequence) -> ForwardOutput:
        """Reads the pending tokens. Keeps the row of the last, or for a combiner the rows of all."""
        model, pending = self._states[sequence].model, self._states[sequence].pending
        if model.combiner is None:
            return model.forward(pending, LAST_QUERY if sequence.wants_row else NO_QUERIES, num_logits=1)
        if self._loaded.attention_layers.captures_rows:
            return model.forward(pending, ALL_QUERIES, num_logits=1)
        *first, last = pending.split(1, dim=1)  # a model that gives whole matrices gives the last token's rows alone
        for token in first:
            output = model.forward(token, LAST_QUERY, num_logits=1)
            model.attention(output, to_host(output.tensors))
        return model.forward(last, LAST_QUERY, num_logits=1)


def _contrast_logits(state: _State, contrast: Contrast | None, chosen: Tensor) -> ContrastLogits | None:
    """Lets the sequence of a contrast read what the first sequence has read. `chosen`, int64 `[1]`, comes next."""
    if contrast is None or state.contrast is None:
        return None
    model = state.contrast
    pending = state.pending if model.num_read else model.tensor(model.prompt)
    logits = model.forward(pending, NO_QUERIES, num_logits=1).logits
    return ContrastLogits(logits, chosen, contrast.kl_top_p, contrast.kl_top_k)
