"""The forward passes of a request whose target is given: the encoder's, and the decoder's over the target.

The decoder reads a long text in parts, so that neither masks nor logits nor rows grow with the square of its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...capture import AttentionArrays, AttentionKind, CapturePlan, minuend_plan, subtract
from ...errors import not_a_number
from ...models import LoadedModel
from ...request import MAX_PART_BYTES, Contrast, EncoderStates, Observer, Request
from ...sampling import ContrastLogits, step_scores
from ...transfer import int_tensor, to_host
from ..forward_output import ForwardOutput
from ..sequence import Sequence, StepOutput
from ..single_sequence import ALL_QUERIES, NO_QUERIES, SingleSequenceModel, new_combiner
from .encoder_states import read_states_alone
from .given_tokens import GivenTokens

# The most tokens that one pass reads.
_PASS_TOKENS = 1024


_NOTHING: Mapping[Observer, AttentionArrays] = {}


class TargetOutput(NamedTuple):
    """What a pass of the decoder gave of some consecutive steps. All arrays are on the host and finite."""

    first_step: int
    scores: NDArray[Any]  # float32 `[steps, scores]`
    first_row: int  # the first step that has a row
    cross: AttentionArrays | None  # a query for each step from `first_row` on; None if not captured
    decoder_self: AttentionArrays | None
    first_query: int  # the position of the query of step 0
    observed: Mapping[Observer, AttentionArrays] = _NOTHING  # for each observer, the rows of the steps that come next

    def rows(self, step: int) -> tuple[AttentionArrays | None, AttentionArrays | None]:
        """Copies the rows of a step: cross, and the positions of decoder self-attention that the step can see."""
        row, num_visible = step - self.first_row, self.first_query + step + 1
        if row < 0:
            return None, None
        cross, own = self.cross, self.decoder_self
        return (
            None if cross is None or row >= len(cross.values) else cross.copy_query(row),
            None if own is None or row >= len(own.values) else own.copy_query(row, num_visible),
        )

    def steps(self, ids: Iterable[int]) -> Iterator[StepOutput]:
        """What the pass gave of each of its steps, whose tokens are `ids`.

        The row is the step's own, also where it is that of the query that reads the token.
        """
        for number, (id_, scores) in enumerate(zip(ids, self.scores.tolist(), strict=True)):
            step = self.first_step + number
            cross, own = self.rows(step)
            observed: Mapping[Observer, AttentionArrays] = {
                name: rows.query(number) for name, rows in self.observed.items()
            }
            yield StepOutput(
                step, id_, is_end_token=False, scores=scores, cross=cross, decoder_self=own, observed=observed
            )


class _Context:
    """A given target in one context: the model, and the tokens that its decoder reads."""

    def __init__(self, loaded: LoadedModel, request: Request, plan: CapturePlan) -> None:
        self.model = SingleSequenceModel.of_request(loaded, request, plan=plan)
        self.tokens = GivenTokens.of_request(loaded, request)
        self._observed = request.observed
        self._kept = NO_QUERIES  # the queries of the last pass whose rows are kept

    def forward(self, begin: int, end: int) -> tuple[ForwardOutput, Tensor]:
        """Reads some of the tokens. Returns what the pass gave, with logits for each step, and the steps' tokens."""
        tokens = self.tokens
        self._kept = tokens.queries(begin, end)
        # A combiner needs the rows of all queries.
        queries = self._kept if self.model.combiner is None else ALL_QUERIES
        # The logits of a step are those of the query before its token, whichever query its row is from.
        first_scored = max(0, begin - tokens.num_prompt + 1)
        last_scored = max(first_scored, min(end - tokens.num_prompt + 1, len(tokens.ids)))
        num_logits = end - max(begin, tokens.num_prompt - 1)
        ids = self.model.tensor(tokens.read[begin:end])
        is_last = end == len(tokens.read)
        observed: dict[Observer, slice] = {
            name: tokens.observed_queries(plan.row, begin, end) for name, plan in self._observed.items()
        }
        output = self.model.forward(ids, queries, max(1, num_logits), is_last=is_last, observed_queries=observed)
        logits = output.logits[: last_scored - first_scored]
        return replace(output, logits=logits), self.model.tensor(tokens.ids[first_scored:last_scored])[0]

    def rows(self, output: ForwardOutput, arrays: list[NDArray[Any]]) -> dict[AttentionKind, AttentionArrays]:
        """Returns the kept rows of the last pass, from the copies of its tensors. Raises RequestError."""
        rows = self.model.attention(output, arrays)
        if self.model.combiner is None:
            return rows
        if self._kept == NO_QUERIES:
            return {}
        return {kind: array.copy_queries(self._kept) for kind, array in rows.items()}


class TargetPass:
    """One request's passes: `encode`, then `decode`. For the engine's thread, in torch's inference mode.

    With an EncodedTarget: `read_states` alone. A `TargetReader` may run the passes of several requests together before.
    With a contrast, a second pass runs in the context of the contrast.
    """

    def __init__(
        self, loaded: LoadedModel, request: Request, *, sequence: Sequence | None = None, first_step: int = 0
    ) -> None:
        """The slot of a `sequence` keeps the keys and values. Only a `TargetReader` runs such a pass.

        Nothing is wanted of the steps before `first_step`.
        """
        self.request = request
        self.sequence = sequence
        self._first_step = first_step
        # What a pass together with others has given.
        self.result: TargetOutput | EncoderStates | Exception | None = None
        self._loaded = loaded
        contrast = request.contrast
        self._subtracts = contrast is not None and contrast.subtracts_attention
        self._plan = minuend_plan(request.capture) if self._subtracts else request.capture

    @cached_property
    def tokens(self) -> GivenTokens:
        """What the decoder reads."""
        return GivenTokens.of_request(self._loaded, self.request, self._first_step)

    @property
    def num_tokens(self) -> int:
        """How many tokens of source and target the passes read."""
        return self.request.source_length + len(self.tokens.read)

    def goes_with(self, other: TargetPass) -> bool:
        """Whether one batch may have this pass and the other: either both have sequences, or neither has."""
        if self.sequence is None or other.sequence is None:
            return self.sequence is other.sequence
        return self.can_share and other.can_share

    @cached_property
    def can_share(self) -> bool:
        """Whether one pass over the target may be run together with others: one that is short, without a contrast.

        Encoder self-attention, and the rows of a method that combines rows, come from the passes of one request.
        """
        request, backend = self.request, self._loaded.backend
        if backend is None or backend.is_batch_invariant:
            return False
        if request.contrast is not None or "encoder_self" in request.capture.recorded.kinds:
            return False
        if max(len(self.tokens.read), request.source_length) > _PASS_TOKENS:
            return False
        is_one_part = len([*_parts(request, self.tokens)]) == 1
        return is_one_part and new_combiner(self._loaded, request, request.capture) is None

    @cached_property
    def _context(self) -> _Context:
        return _Context(self._loaded, self.request, self._plan)

    @cached_property
    def _contrast(self) -> _Context | None:
        contrast = self.request.contrast
        return None if contrast is None else _Context(self._loaded, contrast.request, contrast.request.capture)

    def encode(self) -> Iterator[AttentionArrays] | None:
        """Runs the encoder, if there is one. Returns its self-attention in parts, if captured. Raises RequestError."""
        if self.result is not None:
            return None
        attention = self._context.model.encode()
        other = None if self._contrast is None else self._contrast.model.encode()
        if attention is None or other is None:
            return attention
        plan = self.request.capture
        differences = (subtract(part, same, plan) for part, same in zip(attention, other, strict=True))
        return (part for part in differences if part is not None)

    def decode(self) -> Iterator[TargetOutput]:
        """Runs the decoder over the target, part by part. Each output takes one pass; it may have no steps.

        Raises RequestError where a number is NaN or infinite.
        """
        if self.result is not None:
            result, self.result = self.result, None
            if isinstance(result, Exception):
                raise result
            assert isinstance(result, TargetOutput)
            yield result
            return
        tokens = self.tokens
        waiting = np.empty((0, len(self.request.scores)), np.float32)  # scores of steps whose rows come later
        num_done = 0
        for begin, end in _parts(self.request, tokens):
            scores, cross, own, observed = self._run(begin, end)
            waiting = np.concatenate([waiting, scores])
            num_ready = tokens.num_steps(end) - num_done
            first_row = max(tokens.steps.start, begin - tokens.first_query)
            yield TargetOutput(num_done, waiting[:num_ready], first_row, cross, own, tokens.first_query, observed)
            waiting, num_done = waiting[num_ready:], num_done + num_ready

    def read_states(self) -> EncoderStates:
        """Runs the encoder over source and target. Raises RequestError where a number is NaN or infinite."""
        result, self.result = self.result or read_states_alone(self._loaded, self.request), None
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, EncoderStates)
        return result

    def _run(
        self, begin: int, end: int
    ) -> tuple[NDArray[Any], AttentionArrays | None, AttentionArrays | None, Mapping[Observer, AttentionArrays]]:
        """Runs a pass. Returns the scores of its steps, and its rows: cross, decoder self-attention, those observed."""
        request, contrast = self.request, self.request.contrast
        output, targets = self._context.forward(begin, end)
        other = compared = None
        if self._contrast is not None and contrast is not None:
            other, tokens = self._contrast.forward(0, len(self._contrast.tokens.read))
            compared = _compare(contrast, other.logits, tokens)
        scores, maxima = output.logits.new_empty((0, len(request.scores))), output.logits.new_empty(0)
        if len(targets):  # a part of the prompt alone has none
            scores = step_scores(request.scores, output.logits, targets, request.score_top_p, compared)
            # The maximum of a row is NaN where any number of the row is.
            maxima = output.logits.amax(-1)
        subtracted = [] if other is None else other.tensors
        seen = output.observed_tensors
        scores, maxima, *arrays = to_host([scores.float(), maxima.float(), *seen, *output.tensors, *subtracted])
        observed, arrays = output.observed_rows(arrays[: len(seen)]), arrays[len(seen) :]
        if not all(array.is_finite() for array in (AttentionArrays(maxima), AttentionArrays(scores))):
            raise not_a_number()
        rows = self._context.rows(output, arrays[: len(output.tensors)])
        cross, decoder_self = rows.get("cross"), rows.get("decoder_self")
        if self._subtracts and other is not None and self._contrast is not None:
            others = self._contrast.rows(other, arrays[len(output.tensors) :])
            cross = subtract(cross, others.get("cross"), request.capture)
            decoder_self = subtract(decoder_self, others.get("decoder_self"), request.capture)
        return scores, cross, decoder_self, observed


def _compare(contrast: Contrast, logits: Tensor, tokens: Tensor) -> ContrastLogits:
    """The logits and the tokens that each step is compared with, of those of the contrast target."""
    if contrast.steps is not None:
        steps = int_tensor(contrast.steps, logits.device)
        logits, tokens = logits[steps], tokens[steps]
    return ContrastLogits(logits, tokens, contrast.kl_top_p, contrast.kl_top_k)


def _parts(request: Request, tokens: GivenTokens) -> Iterator[tuple[int, int]]:
    """Yields which tokens each pass reads: a bounded number, with rows of a bounded number of bytes."""
    first_row, last_row = (step + tokens.first_query for step in (tokens.steps.start, tokens.steps.stop))
    begin, length = 0, len(tokens.read)
    while begin < length:
        end = min(length, begin + _PASS_TOKENS) if request.has_parts else length
        if request.has_parts and begin < last_row and first_row < end:
            max_rows = MAX_PART_BYTES // max(1, request.step_bytes(end + 1))
            end = min(end, max(begin, first_row) + max(1, max_rows))
        yield begin, end
        begin = end
