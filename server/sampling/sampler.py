"""Chooses the next tokens of all slots of a running batch at once: greedily or by sampling, each as if it were alone.

Every request's tokens are those of transformers' `generate` with the same options, whatever its neighbours ask for.
What is to be done to a batch's logits is planned when its slots change, or what applies to them (a minimal length that
is reached); the steps in between only follow the plan. Nothing in a step waits for the device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..layers import screened_head as screening
from ..models import LoadedModel
from ..request import DecodingParams
from ..transfer import int_tensor
from . import logits_ops as changes
from .logits_ops import Change, History
from .logits_processors import SamplingParams, end_ids, generation_config, processors_of, read_options

T = TypeVar("T")


class SamplerOutput(NamedTuple):
    """Tokens that were chosen, on the device. Row i is slot i's; rows of slots that are not active mean nothing."""

    tokens: Tensor  # int64 [n]
    is_number: Tensor  # bool [n]: whether none of the scores that it was chosen by was NaN or plus infinity
    # Bool [n]: whether any token was left to be drawn. None where no slot draws: `generate` does not check it.
    is_left: Tensor | None = None


@dataclass
class _Alone:
    """The processors of a slot that asks for what only transformers' own can do."""

    processors: Any  # a LogitsProcessorList: maps ids [1, tokens] and scores [1, vocabulary] to scores
    ids: Tensor  # [1, tokens so far]


@dataclass
class _Slot:
    """A request in a slot."""

    options: SamplingParams
    end_ids: frozenset[int]
    generator: torch.Generator | None  # its own, so that neighbours cannot change what it draws; None: greedy
    alone: _Alone | None


class SamplerState(NamedTuple):
    """A request between two slots: what it asks for, and how far it is."""

    request: _Slot
    length: int
    history: Tensor | None


class Sampler:
    """The tokens of all slots, step after step."""

    def __init__(self, loaded: LoadedModel, slots: int, length: int) -> None:
        """`length` is the most tokens of a target, its context included, and for decoder-only models the prompt."""
        self._loaded = loaded
        self._device = loaded.model.device
        self._vocabulary = int(getattr(loaded.model.get_output_embeddings(), "out_features", loaded.vocabulary_size))
        self._slots: dict[int, _Slot] = {}
        self._lengths = np.zeros(slots, np.int64)
        self._history = History(slots, length, self._device)
        self._plan: _Plan | None = None
        self.failed: dict[int, Exception] = {}  # by slot: what its own processors raised in the last `sample`

    def add(self, slot: int, decoding: DecodingParams, context: Sequence[int], source: Sequence[int] | None) -> None:
        """Puts a request into a slot that is free.

        `context` is what the decoder reads before step 0, at least one token; `source` what an encoder has read. Raises
        ValueError where the model's generation config makes no sense.
        """
        config = generation_config(self._loaded, decoding, len(context))
        ends = end_ids(config)
        processors = processors_of(self._loaded, config, context, source, torch.device("cpu"))
        options = read_options(processors, self._vocabulary)
        alone: _Alone | None = None
        if options is None or (options.needs_history and max(context) >= self._vocabulary):
            options = SamplingParams()
            own = processors_of(self._loaded, config, context, source, self._device)
            alone = _Alone(own, int_tensor([list(context)], self._device))
        generator: torch.Generator | None = None
        if decoding.do_sample:
            generator = torch.Generator(self._device).manual_seed(decoding.seed or 0)
        if options.needs_history:
            self._history.start(slot, context)
        self._slots[slot] = _Slot(options, ends, generator, alone)
        self._lengths[slot] = len(context)
        self._plan = None

    def remove(self, slot: int) -> None:
        """Frees a slot."""
        del self._slots[slot]
        self._plan = None

    def swap_out(self, slot: int) -> SamplerState:
        """Frees a slot, and gives what it takes to go on in another."""
        history = self._history.take(slot) if self._slots[slot].options.needs_history else None
        chosen = SamplerState(self._slots[slot], int(self._lengths[slot]), history)
        self.remove(slot)
        return chosen

    def swap_in(self, slot: int, chosen: SamplerState) -> None:
        """Goes on, in a slot that is free, with what was taken out of one."""
        self._slots[slot] = chosen.request
        self._lengths[slot] = chosen.length
        if chosen.history is not None:
            self._history.put(slot, chosen.history)
        self._plan = None

    def end_ids(self, slot: int) -> frozenset[int]:
        """The tokens that end a slot's target."""
        return self._slots[slot].end_ids

    def wants_greatest_alone(self, active: Sequence[int], rows: int) -> bool:
        """Whether the next `sample`, for so many rows, needs no more of scores than which is the greatest of each row.

        Some may be taken out before, which does not change the others.
        """
        plan = self._plan_for(active, (rows, self._vocabulary))
        return plan.sampling is None and plan.takes_out_alone

    def banned_tokens(self, active: Sequence[int], rows: int) -> Tensor | None:
        """Which scores of the next step's, for so many rows, are not to be looked at, where that is all that is asked.

        Int64 `[m]`: each a row times the size of the vocabulary, and a token. Then `accept_argmax` can take the place
        of `sample`. None where `sample` must see scores.
        """
        plan = self._plan_for(active, (rows, self._vocabulary))
        return None if plan.sampling is not None else plan.out

    def accept_argmax(self, tokens: Tensor, most: Tensor, active: Sequence[int]) -> SamplerOutput:
        """As `sample`, where the tokens with the greatest scores have been found, int64 `[n]`.

        None of them is `banned_tokens`. `most`, float32 `[n]`, is NaN where a row has scores that are.
        """
        plan = self._plan_for(active, (len(tokens), self._vocabulary))
        self.failed = {}
        # By NumPy: a call of torch's gives Python's lock away, and others keep it for a while.
        choice = SamplerOutput(tokens, torch.from_numpy(most.numpy() < np.inf))
        self._take_note(plan, choice)
        return choice

    def sample(
        self,
        logits: Tensor,
        active: Sequence[int],
        *,
        keep: bool = True,
        greatest: Callable[[Tensor], Tensor] | None = None,
    ) -> SamplerOutput:
        """The next tokens of the active slots, from logits `[n, vocabulary]` whose row i belongs to slot i.

        Logits may be of any float type. They are left as they are, unless `keep` is False: nobody needs them any more.
        What rows of other slots hold does not matter. `greatest` finds the token of each row, int64 `[n]`, where the
        greatest number is not the one to look for.
        """
        self.failed = {}
        plan = self._plan_for(active, (logits.shape[0], logits.shape[1]))
        sampling = plan.sampling
        scores = logits
        if plan.changes or (sampling is not None and sampling.rows is None and sampling.changes):
            scores = logits.to(torch.float32, copy=keep, memory_format=torch.contiguous_format)
        for change in plan.changes:
            change(scores)
        choice = _greedy(scores, greatest or screening.greatest) if sampling is None or plan.greedy else None
        if sampling is not None:
            choice = sampling.draw(scores, choice)
        assert choice is not None
        self._take_note(plan, choice)
        return choice

    def _take_note(self, plan: _Plan, choice: SamplerOutput) -> None:
        """Goes on to the next step."""
        plan.steps -= 1
        self._lengths[plan.slots] += 1
        if plan.remembered is not None:
            self._history.append(plan.remembering, plan.remembered, choice.tokens)
        for slot in plan.alone:
            alone = self._alone(slot)
            alone.ids = torch.cat([alone.ids, choice.tokens[slot : slot + 1, None]], dim=-1)

    def _plan_for(self, active: Sequence[int], shape: tuple[int, int]) -> _Plan:
        """The plan for some slots and logits of a shape: the last one, as long as it holds."""
        plan = self._plan
        if plan is None or not plan.steps or plan.active != tuple(active) or plan.shape != shape:
            plan = self._plan = self._planned(tuple(active), *shape)
        return plan

    def _planned(self, active: tuple[int, ...], rows: int, vocabulary: int) -> _Plan:
        """What is to be done for some slots, as things are now."""
        device, history = self._device, self._history
        slots = {slot: self._slots[slot] for slot in sorted(active)}
        options = {slot: request.options for slot, request in slots.items()}
        lengths = {slot: int(self._lengths[slot]) for slot in slots}

        def those(wish: Callable[[int, SamplingParams], T | None]) -> dict[int, T]:
            """What each slot wishes, where that is something."""
            wishes = ((slot, wish(slot, options_)) for slot, options_ in options.items())
            return {slot: wished for slot, wished in wishes if wished}

        def places(ids: dict[int, tuple[int, ...]]) -> Tensor:
            return changes.flat_places(ids, vocabulary, device)

        made: list[Change] = []
        out: list[Tensor] = []  # of the question
        if penalties := those(lambda _, o: o.repetition_penalty if o.repetition_penalty != 1.0 else None):
            made.append(changes.penalize(penalties, history, vocabulary, device))
        if sizes := those(lambda _, o: o.ngram_size):
            made.append(changes.ban_repeated_ngrams(sizes, history, vocabulary, device))
        if bad_words := those(lambda _, o: o.bad_words):
            out.append(places(bad_words))
            made.append(changes.subtract_all(out[-1]))
        if too_short := those(lambda slot, o: o.ends if lengths[slot] < o.min_length else ()):
            out.append(places(too_short))
            made.append(changes.suppress(out[-1]))
        if forced := those(lambda slot, o: o.forced.get(lengths[slot])):
            made.append(changes.force(int_tensor(list(forced), device), places(forced)))
        if suppressed := those(
            lambda slot, o: (*o.suppressed, *(o.begin_suppressed if lengths[slot] == o.begin else ()))
        ):
            out.append(places(suppressed))
            made.append(changes.suppress(out[-1]))
        sampling = {slot: request.generator for slot, request in slots.items() if request.generator is not None}
        if normalized := [slot for slot, o in options.items() if o.renormalize and slot not in sampling]:
            made.append(changes.on_rows(_some(normalized, rows, device), changes.normalize))
        alone = [slot for slot, request in slots.items() if request.alone is not None]
        made += [self._change_alone(slot) for slot in alone]
        remembering = [slot for slot, o in options.items() if o.needs_history]
        until = [length - lengths[slot] for slot, o in options.items() for length in o.changes()]
        return _Plan(
            active=active,
            shape=(rows, vocabulary),
            steps=min((steps for steps in until if steps > 0), default=sys.maxsize),
            slots=list(slots),
            greedy=len(sampling) < len(slots),
            # Of tokens that are forced side by side, the first is taken, whatever their scores were.
            takes_out_alone=not (penalties or normalized or alone or any(len(ids) > 1 for ids in forced.values())),
            out=_joined(out) if len(out) == len(made) else None,
            changes=made,
            alone=alone,
            remembering=remembering,
            remembered=int_tensor(remembering, device) if remembering else None,
            sampling=_sampling(sampling, options, rows, device) if sampling else None,
        )

    def _alone(self, slot: int) -> _Alone:
        alone = self._slots[slot].alone
        assert alone is not None
        return alone

    def _change_alone(self, slot: int) -> Change:
        """A slot's own processors. What they raise is the slot's own trouble."""
        alone = self._alone(slot)

        def change(scores: Tensor) -> None:
            row = scores[slot : slot + 1]
            try:
                row.copy_(alone.processors(alone.ids, row.clone()))
            except Exception as error:  # whatever it is, the neighbours go on
                self.failed[slot] = error

        return change


@dataclass
class _Plan:
    """What is done with the logits of a batch while its slots stay, and what applies to them."""

    active: tuple[int, ...]
    shape: tuple[int, int]  # of the logits
    steps: int  # for how many more it holds
    slots: list[int]
    greedy: bool  # whether any slot is
    takes_out_alone: bool  # whether changes do no more than that some tokens cannot be chosen
    out: Tensor | None  # which scores are out of the question, int64; None where changes do more than that
    changes: list[Change]
    alone: list[int]
    remembering: list[int]  # slots for which the tokens so far matter
    remembered: Tensor | None  # the same, on the device
    sampling: _Sampling | None


@dataclass
class _Sampling:
    """The rows that are drawn for."""

    rows: Tensor | None  # their numbers; None: all there are
    generators: list[torch.Generator]
    changes: list[Change]  # of these rows alone

    def draw(self, scores: Tensor, others: SamplerOutput | None) -> SamplerOutput:
        """Draws for its rows; what was chosen for the others stays. Scores are changed where `rows` is None."""
        drawn = (scores if self.rows is None else scores.index_select(0, self.rows)).float()
        # Where no token may come, as with n-grams that must not come again in a small vocabulary, shares are NaN, too.
        is_left = drawn.amax(-1) != -float("inf")
        for change in self.changes:
            change(drawn)
        probabilities = drawn.softmax(-1)
        # One number that is none makes all of a row's probabilities so.
        is_number = ~probabilities[:, 0].isnan()
        # torch.multinomial's own way to draw one, to the number, without its look at the sum, which waits.
        draws = torch.empty_like(probabilities)
        for row, generator in zip(draws, self.generators, strict=True):
            row.exponential_(generator=generator)
        tokens = screening.greatest(probabilities.div_(draws))
        if self.rows is None:
            return SamplerOutput(tokens, is_number, is_left)
        if others is None:
            others = SamplerOutput(tokens.new_zeros(len(scores)), is_number.new_zeros(len(scores)))
        return SamplerOutput(
            others.tokens.index_copy(0, self.rows, tokens),
            others.is_number.index_copy(0, self.rows, is_number),
            torch.ones_like(others.is_number).index_copy_(0, self.rows, is_left),
        )


def _sampling(
    generators: dict[int, torch.Generator], options: dict[int, SamplingParams], rows: int, device: torch.device
) -> _Sampling:
    drawn = [options[slot] for slot in generators]

    def for_those(wish: Callable[[SamplingParams], T | None], change: Callable[[list[T]], Change]) -> list[Change]:
        """A change for the rows that wish one."""
        wishes = {row: wished for row, options_ in enumerate(drawn) if (wished := wish(options_)) is not None}
        if not wishes:
            return []
        return [changes.on_rows(_some(list(wishes), len(drawn), device), change(list(wishes.values())))]

    made = [
        *for_those(lambda o: o.temperature if o.temperature != 1.0 else None, lambda t: changes.cool(t, device)),
        *for_those(lambda o: o.top_k or None, lambda k: changes.keep_top_k(k, device)),
        *for_those(lambda o: o.top_p if o.top_p < 1.0 else None, lambda p: changes.keep_top_p(p, device)),
        *for_those(lambda o: o.renormalize or None, lambda _: changes.normalize),
    ]
    return _Sampling(_some(list(generators), rows, device), list(generators.values()), made)


def _greedy(scores: Tensor, greatest: Callable[[Tensor], Tensor]) -> SamplerOutput:
    tokens = greatest(scores)[:, None]
    # The greatest of a row is NaN where any is, and then it is below nothing.
    return SamplerOutput(tokens[:, 0], scores.gather(-1, tokens)[:, 0] < float("inf"))


def _joined(places: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(places)) if places else torch.empty(0, dtype=torch.int64)


def _some(rows: list[int], of: int, device: torch.device) -> Tensor | None:
    """The numbers of some of so many rows; None where they are all."""
    return int_tensor(rows, device) if len(rows) < of else None
