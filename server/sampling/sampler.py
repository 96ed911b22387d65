"""Sampler: the next tokens of all slots of a running batch at once, greedy or drawn, each as if it were alone.

The tokens of each request are those of transformers' `generate` with the same options, whatever its neighbours ask for.
A plan says what is done to a batch's logits. It is built when the slots change, or when a ban begins or ends (such as a
minimal length that is reached); the steps in between only follow the plan. Nothing in a step waits for the device.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import ArgmaxQuery, LMHead
from ..models import LoadedModel
from ..request import DecodingParams, FollowedTarget
from ..transfer import int_tensor
from . import logits_ops
from .logits_processors import end_ids, generation_config, make_processors, read_params
from .params import SamplingParams
from .sampling_plan import CustomProcessors, SamplerOutput, SamplingPlan, SlotRequest, build_plan
from .token_history import SwappedTokens, TokenHistory

# How many different options are remembered.
_MAX_KNOWN_OPTIONS = 256


class SamplerState(NamedTuple):
    """A request between two slots: what the request asks for, and its tokens so far."""

    request: SlotRequest
    tokens: SwappedTokens


class _ReadOptions(NamedTuple):
    """What a request's options come to."""

    params: SamplingParams | None  # None: only transformers' own processors can apply the options
    end_ids: frozenset[int]


class _OptionsReader:
    """Reads what the options of requests come to, and remembers it. One sampler owns it.

    Processors that can be read depend on the length of the context, and not on its tokens. To make and to read them
    took 6 % of the time of the engine's thread, where the requests are sentences.
    """

    def __init__(self, loaded: LoadedModel, vocabulary: int) -> None:
        self._loaded = loaded
        self._vocabulary = vocabulary
        self._known: dict[Hashable, _ReadOptions] = {}

    def read(self, decoding: DecodingParams, context: Sequence[int], source: Sequence[int] | None) -> _ReadOptions:
        """Reads a request's options, or finds what was read of the same options before."""
        key = (
            repr(decoding.generation),
            decoding.do_sample,
            decoding.max_new_tokens,
            decoding.ignore_eos,
            len(context),
        )
        options = self._known.get(key)
        if options is None:
            config = generation_config(self._loaded, decoding, len(context))
            processors = make_processors(self._loaded, config, context, source, torch.device("cpu"))
            options = _ReadOptions(read_params(processors, self._vocabulary), end_ids(config))
            if len(self._known) >= _MAX_KNOWN_OPTIONS:
                self._known.clear()
            self._known[key] = options
        return options


class Sampler:
    """The next tokens of all slots, step after step. Owned by a model runner, for one thread.

    A decode step of the slots from `first` to `end` goes in this order:

    1. `query = sampler.argmax_query(lm_head, first, end, active)`
    2. The backend decodes. With a query, it also runs the query's search.
    3. With a query: `sampler.accept_argmax(query, active)`. Without a query:
       `sampler.sample(logits, active, first=first)`, with the logits of these slots.
    """

    def __init__(self, loaded: LoadedModel, num_slots: int, max_length: int) -> None:
        """`max_length` is the most tokens of a target and its context, a decoder-only model's prompt included."""
        self._loaded = loaded
        self._device = loaded.model.device
        self._vocabulary = int(getattr(loaded.model.get_output_embeddings(), "out_features", loaded.vocabulary_size))
        self._requests: dict[int, SlotRequest] = {}
        self._history = TokenHistory(num_slots, max_length, self._device)
        self._plan: SamplingPlan | None = None
        self._has_changed = False  # whether a slot has got another request since the plan was made
        self._options_reader = _OptionsReader(loaded, self._vocabulary)
        # Set where a step draws or counts its first token: another attempt would do that twice.
        self.has_begun = False
        self.errors: dict[int, Exception] = {}  # by slot: what the slot's own processors raised in the last step

    def add(
        self,
        slot: int,
        decoding: DecodingParams | FollowedTarget,
        context: Sequence[int],
        source: Sequence[int] | None,
    ) -> None:
        """Puts a request into a free slot. Where its client gives the tokens, what the sampler chooses is not used.

        `context` is what the decoder reads before step 0, at least one token; `source` is what an encoder has read.
        Raises ValueError where the options contradict each other.
        """
        if isinstance(decoding, DecodingParams):
            self._requests[slot] = self._read_request(decoding, context, source)
        else:
            self._requests[slot] = SlotRequest(SamplingParams(), frozenset(), None, None)
        self._history.start(slot, context, keeps_tokens=self._requests[slot].params.needs_history)
        self._has_changed = True

    def _read_request(
        self, decoding: DecodingParams, context: Sequence[int], source: Sequence[int] | None
    ) -> SlotRequest:
        options = self._options_reader.read(decoding, context, source)
        params, ends = options.params, options.end_ids
        custom: CustomProcessors | None = None
        if params is None or (params.needs_history and max(context) >= self._vocabulary):
            params = SamplingParams()
            config = generation_config(self._loaded, decoding, len(context))
            on_device = make_processors(self._loaded, config, context, source, self._device)
            custom = CustomProcessors(on_device, int_tensor([list(context)], self._device))
        generator: torch.Generator | None = None
        if decoding.do_sample:
            generator = torch.Generator(self._device).manual_seed(decoding.seed or 0)
        return SlotRequest(params, ends, generator, custom, decoding.beam is not None)

    def copy(self, slot: int, to: int) -> None:
        """Puts what a slot with a beam holds into a free slot too."""
        request = self._requests[slot]
        custom = None if request.custom is None else replace(request.custom)
        self._requests[to] = replace(request, custom=custom)
        self._history.swap_in(to, self._history.swap_out(slot, keeps_tokens=request.params.needs_history))
        self._has_changed = True

    def continue_from(self, slot: int, context: Sequence[int], written: Sequence[int]) -> None:
        """Makes a request go on after tokens that it has written already. `context` is as in `add`."""
        request, ids = self._requests[slot], [*context, *written]
        self._history.start(slot, ids, keeps_tokens=request.params.needs_history)
        if request.custom is not None:
            request.custom.ids = int_tensor([ids], self._device)
        self._has_changed = True

    def remove(self, slot: int) -> None:
        """Frees a slot."""
        del self._requests[slot]
        self._has_changed = True

    def swap_out(self, slot: int) -> SamplerState:
        """Frees a slot, and returns what the request needs to go on in another slot."""
        request = self._requests[slot]
        state = SamplerState(request, self._history.swap_out(slot, keeps_tokens=request.params.needs_history))
        self.remove(slot)
        return state

    def swap_in(self, slot: int, state: SamplerState) -> None:
        """Puts a request that was swapped out into a free slot."""
        self._requests[slot] = state.request
        self._history.swap_in(slot, state.tokens)
        self._has_changed = True

    def end_ids(self, slot: int) -> frozenset[int]:
        """The tokens that end a slot's target."""
        return self._requests[slot].end_ids

    def argmax_query(self, lm_head: LMHead | None, first: int, end: int, active: Sequence[int]) -> ArgmaxQuery | None:
        """Returns how the next tokens of the slots from `first` to `end` are found without writing logits.

        None if the next step needs `sample`: a slot draws, an option depends on logits, or nothing faster than full
        logits exists.
        """
        banned = self._plan_for(active, (end, self._vocabulary)).banned
        if lm_head is None or banned is None:
            return None
        return lm_head.argmax_query(end - first, banned, first)

    def accept_argmax(self, query: ArgmaxQuery, active: Sequence[int]) -> SamplerOutput:
        """Takes the tokens that the query's search has found as the next tokens of the active slots.

        The search has run in this step's forward pass. `errors` is empty afterwards.
        """
        tokens, largest = (_rows_by_slot(found, query.first_row) for found in query.found())
        plan = self._plan_for(active, (len(tokens), self._vocabulary))
        self.errors.clear()
        # By NumPy: a call of torch releases Python's lock, and other threads keep the lock for a while.
        # The largest logit of a row is NaN where any is, and NaN is not below infinity.
        output = SamplerOutput(tokens, torch.from_numpy(largest.numpy() < float("inf")))
        for slot, token in plan.forced.items():
            output.tokens[slot], output.is_finite[slot] = token, True
        self._finish_step(plan, output)
        return output

    def sample(
        self, logits: Tensor, active: Sequence[int], *, first: int = 0, keep_logits: bool = True
    ) -> SamplerOutput:
        """Chooses the next tokens of the active slots, from logits `[n, vocabulary]` whose row i is slot `first + i`'s.

        Logits may be of any float type; the rows of slots that are not active may hold anything. The logits stay as
        they are, unless `keep_logits` is False. `errors` holds what processors of single slots have raised.

        A slot with a beam gets no token here: a beam search chooses among the output's `log_probs`, and `branch` takes
        the tokens.
        """
        logits = _rows_by_slot(logits, first)
        self.errors.clear()
        plan = self._plan_for(active, (logits.shape[0], logits.shape[1]))
        if plan.changes_logits:
            logits = logits.to(torch.float32, copy=keep_logits, memory_format=torch.contiguous_format)
        for op in plan.ops:
            op(logits)
        output = _greedy(logits) if plan.has_greedy else None
        if plan.random_sampling is not None:
            weights = plan.random_sampling.weigh(logits)
            self.has_begun = True
            output = plan.random_sampling.draw(weights, len(logits), output)
        if plan.num_beams:
            if output is None:
                count = len(logits)
                output = SamplerOutput(
                    torch.zeros_like(logits[:, 0], dtype=torch.int64), logits.new_zeros(count).bool()
                )
            output = output._replace(log_probs=logits)
        assert output is not None
        self._finish_step(plan, output)
        return output

    def branch(self, slots: Sequence[int], parents: Sequence[int], tokens: Tensor) -> None:
        """Makes slots with beams go on where other slots were: each with its parent's tokens and a new last token.

        `tokens`, int64 `[n]`, take the place of the tokens that `sample` has returned for these slots.
        """
        requests = [self._requests[slot] for slot in slots]
        keeping = [row for row, request in enumerate(requests) if request.params.needs_history]
        self._history.branch(slots, parents, tokens, keeping)
        before = {parent: custom.ids for parent in parents if (custom := self._requests[parent].custom) is not None}
        for row, (request, parent) in enumerate(zip(requests, parents, strict=True)):
            if request.custom is not None:
                request.custom.ids = torch.cat([before[parent][:, :-1], tokens[row].view(1, 1)], dim=-1)

    def _finish_step(self, plan: SamplingPlan, output: SamplerOutput) -> None:
        """Counts the step, and appends its tokens."""
        self.has_begun = True
        plan.steps_left -= 1
        self._history.append(plan.slots, plan.history_rows, output.tokens)
        for slot, custom in plan.custom.items():
            custom.ids = torch.cat([custom.ids, output.tokens[slot : slot + 1, None]], dim=-1)

    def _plan_for(self, active: Sequence[int], shape: tuple[int, int]) -> SamplingPlan:
        """Returns the plan for the active slots and logits of a shape: the last plan, as long as it holds."""
        plan = self._plan
        if plan is not None and plan.active == tuple(active) and plan.shape == shape:
            if plan.steps_left and not self._has_changed:
                return plan
            if plan.renew(self._requests, self._history):
                self._has_changed = False
                return plan
        self._has_changed = False
        self._plan = build_plan(tuple(active), self._requests, self._history, shape, self.errors)
        return self._plan


def _greedy(logits: Tensor) -> SamplerOutput:
    tokens = logits_ops.argmax(logits)[:, None]
    # The largest logit of a row is NaN where any is, and NaN is not below infinity.
    return SamplerOutput(tokens[:, 0], logits.gather(-1, tokens)[:, 0] < float("inf"))


def _rows_by_slot(rows: Tensor, first: int) -> Tensor:
    """Puts rows before those of the slots from `first` on, so that row i is slot i's. The new rows mean nothing."""
    return torch.cat([rows.new_zeros(first, *rows.shape[1:]), rows]) if first else rows
