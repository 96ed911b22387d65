"""What follows a decode step of beam searches: the hypotheses that go on, and their caches, tokens and histories.

The steps record the attention rows of all hypotheses, and the group of a search keeps the rows, as far as the memory
for them goes. What a search cannot keep comes from one pass over the best hypothesis, as for a given target: see
`records_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...capture import WEIGHTS
from ...errors import invalid, not_a_number
from ...memory import release_memory_of
from ...models import KVCache, LoadedModel
from ...request import DecodingParams, Request
from ...sampling import BeamChoice, BeamSearch, Sampler, find_candidates
from ...transfer import int_tensor, to_host
from ..sequence import BeamGroup, DecodeOutput, SearchOutput, Sequence, StepOutput, num_common
from ..target_text import HypothesisTexts


def records_rows(request: Request) -> bool:
    """Whether the steps of a request's beam search record the rows of its target, so that no pass need follow.

    A pass follows for scores, for a contrast, for rows that depend on the tokens of a hypothesis or on factors of a
    slot, and for rows of the queries that read: nothing reads the last token of a hypothesis.
    """
    capture = request.capture
    needs_pass = request.scores or request.contrast or capture.leaves_out_special or capture.row == "reading"
    return not needs_pass and capture.method is WEIGHTS and any(kind != "encoder_self" for kind in capture.kinds)


def search_request(request: Request) -> Request:
    """Returns what is computed of a request while its beam search runs: no scores, and the rows that are recorded."""
    if records_rows(request):
        return request
    kinds = tuple(kind for kind in request.capture.kinds if kind == "encoder_self")
    return replace(request, capture=replace(request.capture, kinds=kinds), scores=(), contrast=None)


def make_search(loaded: LoadedModel, sequence: Sequence) -> BeamSearch:
    """Returns the search of a sequence's request."""
    request, params = sequence.request, sequence.params
    assert isinstance(params, DecodingParams)
    assert params.beam is not None
    end_ids = frozenset[int]() if params.ignore_eos else sequence.end_ids
    has_stop_text = HypothesisTexts(loaded, request, params.stop).has_stop if params.stop else None
    return BeamSearch(params.beam, params.max_new_tokens, end_ids, has_stop_text, forces_end=params.forces_end)


def flatten(sequences: list[Sequence]) -> Iterator[Sequence]:
    """Yields the sequences that take the next step: of each beam search, all that run."""
    for sequence in sequences:
        if sequence.group is None:
            yield sequence
        else:
            yield from sequence.group.running


def choose(groups: list[BeamGroup], log_probs: Tensor) -> list[BeamChoice | Exception]:
    """Takes the next step of some searches: which hypotheses go on, or what went wrong.

    `log_probs`, float32 `[rows, vocabulary]`, holds the rows of the first group's running sequences, in their order,
    then those of the next group.
    """
    found = find_candidates([group.search for group in groups], log_probs, [len(group.running) for group in groups])
    arrays = to_host([tensor for _, *tensors in found for tensor in tensors])
    choices: dict[BeamSearch, BeamChoice | Exception] = {}
    for (searches, *_), values, indices in zip(found, arrays[::2], arrays[1::2], strict=True):
        for row, search in enumerate(searches):
            if not values[row, 0] < float("inf"):  # the first is NaN where any is
                choices[search] = not_a_number()
                continue
            choices[search] = search.advance(values[row], indices[row], log_probs.shape[1])
            if search.is_done and not search.found:
                message = "leaves no token to write at this step: all of the vocabulary are ruled out"
                choices[search] = invalid("decoding", "NO_TOKEN_LEFT", message)
    return [choices[group.search] for group in groups]


class _Move(NamedTuple):
    """A sequence that goes on where another one was."""

    source: Sequence
    target: Sequence
    begin: int  # the first position at which their caches differ


class BeamStep:
    """The beam searches of one runner, after each decode step: on the runner's own cache, sampler and tokens."""

    def __init__(self, cache: KVCache, sampler: Sampler, tokens: Tensor) -> None:
        """`tokens` are the tokens that the decoder reads next, by slot, int64 `[slots, 1]`. Each step replaces them."""
        self._cache = cache
        self._sampler = sampler
        self._tokens = tokens
        self._kept: list[tuple[list[Sequence], Tensor]] = []

    def keep(
        self, results: list[tuple[Sequence, StepOutput | Exception]], log_probs: Tensor | None
    ) -> list[tuple[Sequence, StepOutput | Exception]]:
        """Keeps what a decode step gave the sequences of beam searches; a step may have run a part of them.

        Returns the results of the step, with an error for these sequences where memory lacks.
        """
        sequences = [
            sequence
            for sequence, output in results
            if sequence.request.beam is not None and not isinstance(output, Exception)
        ]
        if not sequences:
            return results
        assert log_probs is not None
        try:
            slots = int_tensor([sequence.slot for sequence in sequences], log_probs.device)
            self._kept.append((sequences, log_probs.index_select(0, slots)))
        except Exception as error:
            fault = release_memory_of(error)
            return [(each, fault if each in sequences else output) for each, output in results]
        return results

    def finish(
        self, searching: list[Sequence], outputs: list[tuple[Sequence, DecodeOutput]]
    ) -> list[tuple[Sequence, DecodeOutput]]:
        """Ends a step in which all running sequences of `searching` were. Returns the outputs of the step.

        The outputs of the sequences of a search are not among them: only what ends the search is.
        """
        kept, self._kept = self._kept, []
        faults = {sequence: output for sequence, output in outputs if isinstance(output, Exception)}
        steps = {sequence: output for sequence, output in outputs if isinstance(output, StepOutput)}
        results = [(sequence, output) for sequence, output in outputs if sequence.request.beam is None]
        sound: list[Sequence] = []
        for sequence in searching:
            assert sequence.group is not None
            fault = next((faults[member] for member in sequence.group.running if member in faults), None)
            if fault is None:
                sound.append(sequence)
            else:
                results.append((sequence, fault))
        if sound:
            try:
                for sequence in sound:
                    assert sequence.group is not None
                    sequence.group.keep_rows(steps)
                results += self._advance(sound, kept)
            except Exception as error:  # such as too little memory for the candidates
                results += [(sequence, release_memory_of(error)) for sequence in sound]
        return results

    def _advance(
        self, searching: list[Sequence], kept: list[tuple[list[Sequence], Tensor]]
    ) -> list[tuple[Sequence, DecodeOutput]]:
        groups = [sequence.group for sequence in searching if sequence.group is not None]
        rows = {sequence: row for row, sequence in enumerate(member for members, _ in kept for member in members)}
        order = [rows[sequence] for group in groups for sequence in group.running]
        log_probs = kept[0][1] if len(kept) == 1 else torch.cat([part for _, part in kept])
        if order != list(range(len(log_probs))):
            log_probs = log_probs.index_select(0, int_tensor(order, log_probs.device))
        # What the sequences had written before this step, which says from where on their caches differ.
        written = [group.search.running for group in groups]
        results: list[tuple[Sequence, DecodeOutput]] = []
        moved: list[tuple[BeamGroup, BeamChoice, list[tuple[int, ...]]]] = []
        for sequence, group, choice, before in zip(searching, groups, choose(groups, log_probs), written, strict=True):
            if isinstance(choice, Exception):
                results.append((sequence, choice))
            elif group.search.is_done:
                found = group.search.found
                results.append((sequence, SearchOutput(found, group.steps_of(found[0].ids))))
            else:
                moved.append((group, choice, before))
        if moved:
            self._move(moved)
        return results

    def _move(self, moved: list[tuple[BeamGroup, BeamChoice, list[tuple[int, ...]]]]) -> None:
        """Lets the chosen hypotheses go on: each in its parent's slot, or in the slot of one that does not go on."""
        parents: list[int] = []
        tokens: list[int] = []
        moves: list[_Move] = []
        for group, choice, before in moved:
            ranks = choice.parents if group.has_begun else [0] * group.search.width
            parents += [group.sequences[rank].slot for rank in ranks]
            tokens += choice.tokens
            if group.has_begun:
                moves += _reorder(group, ranks, before)
            else:
                self._begin(group)
        slots = [sequence.slot for group, *_ in moved for sequence in group.sequences]
        if moves:
            # Only what differs is copied, of all searches together.
            positions = slice(min(move.begin for move in moves), max(move.source.num_cached for move in moves))
            self._cache.copy([move.source.slot for move in moves], [move.target.slot for move in moves], positions)
        chosen = int_tensor(tokens, self._tokens.device)
        self._sampler.branch(slots, parents, chosen)
        self._tokens[int_tensor(slots, self._tokens.device), 0] = chosen

    def _begin(self, group: BeamGroup) -> None:
        """Copies the cache of the first sequence to the others: the prompt, and the source, which is read once."""
        first, *others = group.sequences
        slots = [sequence.slot for sequence in others]
        self._cache.copy([first.slot] * len(slots), slots, slice(0, first.num_cached), first.source_length)
        for sequence in others:
            sequence.num_cached, sequence.num_steps = first.num_cached, first.num_steps
            sequence.source_length = first.source_length
        group.has_begun = True


def _reorder(group: BeamGroup, ranks: list[int], before: list[tuple[int, ...]]) -> list[_Move]:
    """Puts the sequences of a group in the order of the chosen hypotheses, and returns the moves.

    `ranks` are the parents of the hypotheses; `before` is what each former hypothesis had written.
    """
    former = group.sequences
    free = [rank for rank in range(len(former)) if rank not in ranks]
    order: list[int] = []
    moves: list[_Move] = []
    for rank in ranks:
        if rank not in order:
            order.append(rank)
            continue
        order.append(free.pop())
        source, target = former[rank], former[order[-1]]
        num_kept = num_common(before[rank], before[order[-1]])
        if num_kept < len(before[rank]):
            moves.append(_Move(source, target, source.num_cached - len(before[rank]) + num_kept))
    group.sequences = [former[rank] for rank in order]
    return moves
