"""SamplingPlan: what is done to a batch's logits, built once and followed until its slots or their bans change.

A plan turns the SamplingParams of many requests into a few ops over many rows. This module knows slots, logits and
token histories; it does not know models or texts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..transfer import int_tensor
from . import logits_ops
from .logits_ops import LogitsOp, flat_indices, select_rows
from .params import SamplingParams
from .token_history import TokenHistory

T = TypeVar("T")


class SamplerOutput(NamedTuple):
    """The chosen tokens, on the device. Row i belongs to slot i; rows of slots that are not active mean nothing."""

    tokens: Tensor  # int64 [n]
    is_finite: Tensor  # bool [n]: whether none of the logits behind the choice was NaN or plus infinity
    # Bool [n]: whether any token could be drawn. None if no slot draws: `generate` does not check it for greedy search.
    has_candidates: Tensor | None = None
    # Float32 [n, vocabulary]: the log-probabilities of slots with beams, after the logits processors. None if no slot
    # has a beam; the tokens of slots with beams mean nothing.
    log_probs: Tensor | None = None


@dataclass
class CustomProcessors:
    """transformers' own processors of a slot, for options that SamplingParams cannot express."""

    processors: Any  # a LogitsProcessorList: maps ids [1, tokens] and logits [1, vocabulary] to logits
    ids: Tensor  # [1, tokens so far]


@dataclass
class SlotRequest:
    """What the request in a slot asks of the sampler."""

    params: SamplingParams
    end_ids: frozenset[int]
    generator: torch.Generator | None  # its own, so that neighbours cannot change what it draws; None: greedy or beam
    custom: CustomProcessors | None
    has_beam: bool = False  # whether a beam search chooses the tokens

    @property
    def is_plain(self) -> bool:
        """Whether all that is done to the logits follows from `params` and the number of tokens."""
        is_greedy = self.generator is None and not self.has_beam
        return is_greedy and self.custom is None and not self.params.needs_history


@dataclass
class SamplingPlan:
    """What is done to the logits of a batch for the next `steps_left` steps. Owned by the sampler."""

    active: tuple[int, ...]
    shape: tuple[int, int]  # of the logits
    steps_left: int
    slots: list[int]  # the active ones, in order
    ops: list[LogitsOp]  # on all logits, in order
    # Flat indices, int64 [m], of the tokens that may not be chosen. None if a slot draws its token, or if the ops do
    # more than ban and force tokens: then the tokens cannot be chosen without logits.
    banned: Tensor | None
    forced: dict[int, int]  # by slot: the token that an argmax of the changed logits finds, whatever the logits are
    history_rows: Tensor | None  # the slots whose tokens are kept
    custom: dict[int, CustomProcessors]  # by slot
    random_sampling: RandomSampling | None  # None: no slot draws
    num_beams: int  # slots whose tokens a beam search chooses
    phases: list[_Phase]  # of the slots, in order; empty where the plan is about the requests themselves

    def renew(self, requests: Mapping[int, SlotRequest], history: TokenHistory) -> bool:
        """Returns whether the plan holds for the requests that are in its slots now, and counts its steps anew.

        To look takes a fraction of the time that a new plan takes: requests that follow one another often have equal
        options.
        """
        phases, self.steps_left = _phases_of({slot: requests[slot].params for slot in self.slots}, history)
        return phases == self.phases and all(requests[slot].is_plain for slot in self.slots)

    @property
    def has_greedy(self) -> bool:
        """Whether any slot is greedy. A step without slots takes the greedy way, since no random draw is needed."""
        num_drawn = 0 if self.random_sampling is None else len(self.random_sampling.generators)
        return not self.slots or num_drawn + self.num_beams < len(self.slots)

    @property
    def changes_logits(self) -> bool:
        """Whether the plan writes to the logits."""
        drawn = self.random_sampling
        return bool(self.ops) or (drawn is not None and drawn.rows is None and bool(drawn.ops))


class _Weights(NamedTuple):
    """What the tokens of some rows are drawn by."""

    probabilities: Tensor  # float32 `[rows, vocabulary]`
    draws: Tensor  # of the same shape, to be filled
    is_finite: Tensor  # bool `[rows]`
    has_candidates: Tensor  # likewise


@dataclass
class RandomSampling:
    """The rows whose tokens are drawn at random."""

    rows: Tensor | None  # row numbers; None: all rows
    generators: list[torch.Generator]  # one for each of the rows
    ops: list[LogitsOp]  # on the logits of these rows alone

    def weigh(self, logits: Tensor) -> _Weights:
        """Computes how probable each token of the rows is. Changes `logits` if the rows are all rows."""
        drawn = (logits if self.rows is None else logits.index_select(0, self.rows)).float()
        # If no token is allowed, as can happen with banned n-grams in a small vocabulary, probabilities are NaN too.
        has_candidates = drawn.amax(-1) != -float("inf")
        for op in self.ops:
            op(drawn)
        probabilities = drawn.softmax(-1)
        # One NaN or infinity makes all probabilities of a row NaN.
        is_finite = ~probabilities[:, 0].isnan()
        return _Weights(probabilities, torch.empty_like(probabilities), is_finite, has_candidates)

    def draw(self, weights: _Weights, num_rows: int, greedy: SamplerOutput | None) -> SamplerOutput:
        """Draws a token for each of the rows; the other ones of `num_rows` rows keep their `greedy` tokens.

        Another call would draw other tokens.
        """
        probabilities, draws, is_finite, has_candidates = weights
        # torch.multinomial's own way to draw one token, to the bit, without its look at the sum, which waits.
        for row, generator in zip(draws, self.generators, strict=True):
            row.exponential_(generator=generator)
        tokens = logits_ops.argmax(probabilities.div_(draws))
        if self.rows is None:
            return SamplerOutput(tokens, is_finite, has_candidates)
        if greedy is None:
            greedy = SamplerOutput(tokens.new_zeros(num_rows), is_finite.new_zeros(num_rows))
        return SamplerOutput(
            greedy.tokens.index_copy(0, self.rows, tokens),
            greedy.is_finite.index_copy(0, self.rows, is_finite),
            torch.ones_like(greedy.is_finite).index_copy_(0, self.rows, has_candidates),
        )


def build_plan(
    active: tuple[int, ...],
    requests: Mapping[int, SlotRequest],
    history: TokenHistory,
    shape: tuple[int, int],
    errors: dict[int, Exception],
) -> SamplingPlan:
    """Builds the plan for logits `[rows, vocabulary]` of this shape, from the slots' present lengths.

    `errors` receives, by slot, what custom processors raise while the plan runs.
    """
    num_rows, _ = shape
    device = history.device
    active_requests = {slot: requests[slot] for slot in sorted(active)}
    params = {slot: request.params for slot, request in active_requests.items()}
    lengths = {slot: history.length(slot) for slot in params}
    bans = _Bans(params, lengths, shape, device)
    history_ops = _history_ops(params, history, shape[1])
    generators = {slot: r.generator for slot, r in active_requests.items() if r.generator is not None}
    beams = [slot for slot, request in active_requests.items() if request.has_beam]
    # The processors of a beam search read log-probabilities, as in `generate`.
    first_ops = [select_rows(_row_index(beams, num_rows, device), logits_ops.log_softmax)] if beams else []
    normalized = [slot for slot, p in params.items() if p.renormalize and slot not in generators]
    last_ops = [select_rows(_row_index(normalized, num_rows, device), logits_ops.log_softmax)] if normalized else []
    custom = {slot: request.custom for slot, request in active_requests.items() if request.custom is not None}
    last_ops += [_custom_op(slot, processors, errors) for slot, processors in custom.items()]
    history_slots = [slot for slot, p in params.items() if p.needs_history]
    phases, steps_left = _phases_of(params, history)
    return SamplingPlan(
        active=active,
        shape=shape,
        steps_left=steps_left,
        slots=list(active_requests),
        ops=[*first_ops, *history_ops, *bans.ops, *last_ops],
        banned=None if beams or history_ops or last_ops or generators else bans.indices(),
        forced=bans.forced,
        history_rows=int_tensor(history_slots, device) if history_slots else None,
        custom=custom,
        random_sampling=_build_random_sampling(generators, params, num_rows, device) if generators else None,
        num_beams=len(beams),
        phases=phases if all(request.is_plain for request in active_requests.values()) else [],
    )


class _Phase(NamedTuple):
    """What the bans of one slot follow from."""

    params: SamplingParams
    number: int


def _phases_of(params: Mapping[int, SamplingParams], history: TokenHistory) -> tuple[list[_Phase], int]:
    """Returns the present phase of each slot, and for how many steps all of them last."""
    phases: list[_Phase] = []
    steps_left = sys.maxsize
    for slot, p in params.items():
        number, num_left = p.phase(history.length(slot))
        phases.append(_Phase(p, number))
        steps_left = min(steps_left, num_left)
    return phases, steps_left


class _Bans:
    """Banned and forced tokens of slots at their present lengths."""

    def __init__(
        self,
        params: Mapping[int, SamplingParams],
        lengths: Mapping[int, int],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        bad_words = {slot: p.bad_words for slot, p in params.items() if p.bad_words}
        too_short = {slot: p.end_ids for slot, p in params.items() if p.end_ids and lengths[slot] < p.min_length}
        forced = {slot: ids for slot, p in params.items() if (ids := p.forced.get(lengths[slot]))}
        suppressed = {slot: ids for slot, p in params.items() if (ids := p.banned_at(lengths[slot]))}
        self.ops: list[LogitsOp] = []
        self._indices: list[Tensor] = []
        # Of several forced tokens argmax finds the first that is not banned, and token 0 if all are.
        self.forced = {
            slot: min(set(ids).difference(suppressed.get(slot, ())), default=0) for slot, ids in forced.items()
        }
        # In the order of transformers' processors.
        for ids_by_slot, build_op in (
            (bad_words, logits_ops.add_bans),
            (too_short, logits_ops.ban_tokens),
            (forced, lambda indices: logits_ops.force_tokens(int_tensor(list(forced), device), indices)),
            (suppressed, logits_ops.ban_tokens),
        ):
            if ids_by_slot:
                indices = flat_indices(ids_by_slot, shape[1], device)
                self.ops.append(build_op(indices))
                if ids_by_slot is not forced:
                    self._indices.append(indices)

    def indices(self) -> Tensor:
        """Flat indices of all banned tokens, int64 `[m]`."""
        return torch.cat(self._indices) if self._indices else torch.empty(0, dtype=torch.int64)


def _history_ops(params: Mapping[int, SamplingParams], history: TokenHistory, vocabulary: int) -> list[LogitsOp]:
    """The ops that depend on the tokens so far."""
    ops: list[LogitsOp] = []
    if penalties := {s: p.repetition_penalty for s, p in params.items() if p.repetition_penalty != 1.0}:
        ops.append(logits_ops.repetition_penalty(penalties, history, vocabulary, history.device))
    if sizes := {slot: p.ngram_size for slot, p in params.items() if p.ngram_size}:
        ops.append(logits_ops.ban_repeated_ngrams(sizes, history, vocabulary, history.device))
    return ops


def _custom_op(slot: int, custom: CustomProcessors, errors: dict[int, Exception]) -> LogitsOp:
    """Applies a slot's own processors to its row. An error of the processors is the error of this slot alone."""

    def apply(logits: Tensor) -> None:
        row = logits[slot : slot + 1]
        try:
            row.copy_(custom.processors(custom.ids, row.clone()))
        except Exception as error:  # whatever a processor raises, the neighbours go on
            errors[slot] = error

    return apply


def _build_random_sampling(
    generators: Mapping[int, torch.Generator],
    params: Mapping[int, SamplingParams],
    num_rows: int,
    device: torch.device,
) -> RandomSampling:
    """Builds the draws of the slots that have a generator."""
    drawn = [params[slot] for slot in generators]

    def ops_for(
        value_of: Callable[[SamplingParams], T | None], build_op: Callable[[list[T]], LogitsOp]
    ) -> list[LogitsOp]:
        """Builds one op for the rows that have a value."""
        values = {row: value for row, p in enumerate(drawn) if (value := value_of(p)) is not None}
        if not values:
            return []
        return [select_rows(_row_index(list(values), len(drawn), device), build_op(list(values.values())))]

    ops = [
        *ops_for(
            lambda p: p.temperature if p.temperature != 1.0 else None, lambda t: logits_ops.temperature(t, device)
        ),
        *ops_for(lambda p: p.top_k or None, lambda counts: logits_ops.top_k(counts, device)),
        *ops_for(lambda p: p.top_p if p.top_p < 1.0 else None, lambda shares: logits_ops.top_p(shares, device)),
        *ops_for(lambda p: p.renormalize or None, lambda _: logits_ops.log_softmax),
    ]
    return RandomSampling(_row_index(list(generators), num_rows, device), list(generators.values()), ops)


def _row_index(rows: Sequence[int], num_rows: int, device: torch.device) -> Tensor | None:
    """Sends row numbers to the device; None if they are all rows."""
    return int_tensor(rows, device) if len(rows) < num_rows else None
