"""The units of a request: steps and rows that belong together are reduced as they come.

Rows come from the runner as float32, with all positions. They are grouped, cut to what the request wants, and encoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ...capture import AttentionArrays, AttentionKind, FloatArray, RunningReduction, encode, reduce_groups
from ...errors import ErrorCode, RequestError
from ...request import Request, Step, TextSpan, Unit, UnitPlan
from ...text import Token, TokenGrouper, cover, group_tokens, shares_character

# The most bytes of rows that wait until it is certain to which unit they belong. In common texts a few rows wait.
_MAX_WAITING_BYTES = 64 * 1024**2


def spans_of(units: Iterable[range], tokens: Sequence[Token], text: str) -> tuple[TextSpan, ...]:
    """The parts of a text that units of its tokens cover."""
    return tuple(_span_of(tokens[unit.start : unit.stop], text) for unit in units)


def _span_of(tokens: Sequence[Token], text: str) -> TextSpan:
    begin, end = cover(tokens)
    return TextSpan(begin, end, text[begin:end])


def group_prefix(request: Request, tokens: Sequence[Token], text: str) -> list[range]:
    """The units of the tokens before step 0; empty where the request groups nothing."""
    plan = request.units
    if plan is None or not plan.is_grouped:
        return []
    return group_tokens(tokens, text, plan.grouping)


def group_encoder_self(parts: Iterable[AttentionArrays], plan: UnitPlan) -> Iterator[AttentionArrays]:
    """Encoder self-attention with units as queries and as positions, cut and encoded. A part may have no query.

    `parts` are `[queries, positions, ...]`, all queries in order. A unit's queries may lie in several parts.
    """
    query = index = 0
    reduction, share = RunningReduction(plan.over_steps), RunningReduction("mean")
    for part in parts:
        rows = _group_source(part.values, plan, axis=1)
        complete: list[FloatArray] = []
        shares: list[FloatArray] = []
        for number, row in enumerate(rows):
            reduction.add(row)
            if part.shares is not None:
                share.add(part.shares[number])
            query += 1
            if plan.is_grouped and query < plan.source_units[index].stop:
                continue
            reduced = reduction.result()
            if reduced is not None and (plan.source_positions is None or index in plan.source_positions):
                complete.append(reduced)
                if (mean_share := share.result()) is not None:
                    shares.append(mean_share)
            reduction, share = RunningReduction(plan.over_steps), RunningReduction("mean")
            index += 1
        encoded = _encode(np.stack(complete) if complete else rows[:0], plan, axis=1)
        if part.shares is not None:
            encoded = encoded._replace(shares=np.stack(shares) if shares else part.shares[:0])
        yield encoded


def _group_source(values: FloatArray, plan: UnitPlan, axis: int = 0) -> FloatArray:
    """Positions of the source, grouped and cut."""
    if plan.is_grouped:
        values = reduce_groups(values, plan.source_begins, plan.over_positions, axis)
    if plan.source_positions is not None:
        values = np.take(values, plan.source_positions, axis)
    return values


def _encode(rows: FloatArray, plan: UnitPlan, axis: int = 0) -> AttentionArrays:
    return encode(rows, plan.encoding, plan.top_k, axis, is_difference=plan.is_difference)


class UnitBuilder:
    """Makes the outputs of one request from its steps. With a grouping: steps without attention, and units.

    A unit comes before the step that shows that the unit is complete. So a client that has a step has all units that
    the step completes.
    """

    def __init__(self, request: Request, prefix_units: Sequence[range], num_prefix: int, num_prompt: int) -> None:
        """Begins before step 0.

        Args:
            request: A request with a UnitPlan.
            prefix_units: The units of the tokens between the source and step 0.
            num_prefix: The number of these tokens.
            num_prompt: The positions of the source in decoder self-attention: 0 for an encoder-decoder.
        """
        assert request.units is not None
        self._plan = request.units
        self._resume_at = request.resume_at
        self._num_prompt, self._num_prefix = num_prompt, num_prefix
        self._grouper = TokenGrouper(self._plan.grouping, self._plan.target_spans)
        # Where the units of the prefix and of the target begin, counted from the end of the prompt.
        self._begins = [unit.start for unit in prefix_units]
        self._waiting: deque[Step] = deque()  # the unit of the attention is not certain
        self._waiting_bytes = 0
        self._num_units = 0
        self._begin_unit(0)

    def _begin_unit(self, first_step: int) -> None:
        plan = self._plan
        self._begins.append(self._num_prefix + first_step)
        self._steps: list[Step] = []  # of the unit, without attention
        self._cross = RunningReduction(plan.over_steps)
        self._decoder_self = RunningReduction(plan.over_steps)
        # What special tokens took of the rows of the steps, on average.
        self._shares: dict[AttentionKind, RunningReduction] = {
            "cross": RunningReduction("mean"),
            "decoder_self": RunningReduction("mean"),
        }

    def add(self, step: Step, text: str) -> Iterator[Step | Unit]:
        """The outputs that a step completes. `text` is the text of the target so far, at least up to the step."""
        if not self._plan.is_grouped:
            if step.index >= self._resume_at:
                yield self._cut(step)
            return
        self._wait(step)
        yield from self._complete(self._grouper.add(step.token, text), text, step.index >= self._resume_at)
        while self._waiting and self._waiting[0].index < self._grouper.num_decided:
            self._reduce(self._waiting.popleft())
        if step.index >= self._resume_at:
            yield replace(step, cross=None, decoder_self=None)

    def finish(self, text: str) -> Iterator[Unit]:
        """The units that remain at the end of the target."""
        if self._plan.is_grouped:
            yield from self._complete(self._grouper.finish(text), text, True)

    def _wait(self, step: Step) -> None:
        self._waiting.append(step)
        self._waiting_bytes += _row_bytes(step)
        if self._waiting_bytes > _MAX_WAITING_BYTES:
            problem = (
                f"no {self._plan.grouping} has ended for {len(self._waiting):,} steps, whose attention takes more than "
                f"{_MAX_WAITING_BYTES // 1024**2} MiB: ask for fewer layers or heads, or a reduction"
            )
            raise RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CAPTURE_TOO_LARGE", problem, "capture")

    def _complete(self, units: Iterable[range], text: str, is_wanted: bool) -> Iterator[Unit]:
        for unit in units:
            while self._waiting and self._waiting[0].index < unit.stop:
                self._reduce(self._waiting.popleft())
            if is_wanted:
                yield self._build(unit, text)
            self._num_units += 1
            self._begin_unit(unit.stop)

    def _reduce(self, step: Step) -> None:
        """Reduces the positions of a step of the unit that comes next, and adds the step to the unit."""
        self._waiting_bytes -= _row_bytes(step)
        if step.cross is not None:
            self._cross.add(_group_source(step.cross.values, self._plan))
            self._add_shares("cross", step.cross)
        if step.decoder_self is not None:
            self._decoder_self.add(self._group_decoder_self(step.decoder_self.values))
            self._add_shares("decoder_self", step.decoder_self)
        self._steps.append(replace(step, cross=None, decoder_self=None))

    def _add_shares(self, kind: AttentionKind, row: AttentionArrays) -> None:
        if row.shares is not None:
            self._shares[kind].add(row.shares)

    def _group_decoder_self(self, values: FloatArray) -> FloatArray:
        """One row of decoder self-attention, with the positions of the prompt, the prefix and the units so far.

        Of the unit of the row, the positions are reduced that the row has. Where the row has none, the number is 0.
        """
        prompt, own = values[: self._num_prompt], values[self._num_prompt :]
        begins = self._begins if self._begins[-1] < len(own) else self._begins[:-1]
        parts = [_group_source(prompt, self._plan)] if self._num_prompt else []
        if begins:
            parts.append(reduce_groups(own, begins, self._plan.over_positions))
        if len(begins) < len(self._begins):
            parts.append(np.zeros((1, *values.shape[1:]), np.float32))
        return np.concatenate(parts)

    def _build(self, unit: range, text: str) -> Unit:
        cross, decoder_self = self._cross.result(), self._decoder_self.result()
        if not self._is_sliced_in([step.token for step in self._steps]):
            cross = decoder_self = None
        return Unit(
            self._num_units,
            _span_of([step.token for step in self._steps], text),
            unit.start,
            unit.stop,
            self._group_scores(),
            self._encode("cross", cross),
            self._encode("decoder_self", decoder_self),
        )

    def _encode(self, kind: AttentionKind, row: FloatArray | None) -> AttentionArrays | None:
        if row is None:
            return None
        return _encode(row, self._plan)._replace(shares=self._shares[kind].result())

    def _group_scores(self) -> list[float]:
        scores = np.array([step.scores for step in self._steps], np.float64)
        if not scores.size:
            return []
        reduction = RunningReduction(self._plan.over_scores)
        for row in scores:
            reduction.add(row)
        limit = np.finfo(np.float32).max
        reduced = reduction.result()
        assert reduced is not None
        return np.clip(reduced, -limit, limit).tolist()

    def _cut(self, step: Step) -> Step:
        """A step with the positions that are wanted, encoded."""
        plan = self._plan
        if not self._is_sliced_in([step.token]):
            return replace(step, cross=None, decoder_self=None)
        cross, own = step.cross, step.decoder_self
        if cross is not None:
            shares = cross.shares
            cross = _encode(_group_source(cross.values, plan), plan)._replace(shares=shares)
        if own is not None:
            prompt, rest = own.values[: self._num_prompt], own.values[self._num_prompt :]
            values = np.concatenate([_group_source(prompt, plan), rest]) if self._num_prompt else rest
            own = _encode(values, plan)._replace(shares=own.shares)
        return replace(step, cross=cross, decoder_self=own)

    def _is_sliced_in(self, tokens: Sequence[Token]) -> bool:
        """Whether the attention of these tokens is wanted."""
        slices = self._plan.target_slices
        return not slices or any(shares_character(token, span) for token in tokens for span in slices)


def _row_bytes(step: Step) -> int:
    return sum(array.nbytes for array in (step.cross, step.decoder_self) if array is not None)
