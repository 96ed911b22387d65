"""The links of a pair as a protobuf message, and what the request has cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..alignment import MarkedTarget, format_pharaoh
from ..frontends import EngineRequest
from ..text import OffsetMap, OffsetUnit, Span
from .converters import duration_message, fill_links, fill_words
from .enums import OFFSET_UNITS, PLACEMENTS, number_of
from .validation import AlignPlan


class AlignUsage:
    """What all requests to the engine for one AlignRequest have cost together."""

    def __init__(self, arrived: float) -> None:
        """`arrived` is when the AlignRequest arrived, by the monotonic clock."""
        self._arrived = arrived
        self._source_tokens = self._target_tokens = 0
        self._started: list[float] = []
        self._first_steps: list[float] = []
        self._seed: int | None = None

    def add(self, state: EngineRequest, num_steps: int, first_step: float, seed: int | None) -> None:
        """Adds a request that has finished. `first_step` is when its first step was there."""
        self._source_tokens += state.request.source_length
        self._target_tokens += num_steps
        self._started.append(state.start_time or self._arrived)
        self._first_steps.append(first_step)
        self._seed = seed

    def add_states(self, state: EngineRequest, num_tokens: int) -> None:
        """Adds a request for the encoder's states, of which the encoder has read so many tokens."""
        self._source_tokens += num_tokens
        self._started.append(state.start_time or self._arrived)

    def message(self) -> service_pb.Usage | None:
        """Returns the cost; None where no model ran."""
        if not self._started:
            return None
        usage = service_pb.Usage(
            source_tokens=self._source_tokens,
            target_tokens=self._target_tokens,
            queue_time=duration_message(min(self._started) - self._arrived),
            time_to_first_step=duration_message(min(self._first_steps) - self._arrived),
            total_time=duration_message(time.monotonic() - self._arrived),
        )
        if self._seed is not None:
            usage.seed = self._seed
        return usage


def alignment_message(
    request_id: str,
    model: str,
    head_source: service_pb.HeadSource.ValueType,
    plan: AlignPlan,
    source_text: str,
    target: MarkedTarget,
    usage: AlignUsage,
) -> service_pb.AlignResponse:
    """Returns the answer to an AlignRequest. `model` is empty where no model ran."""
    source, target_offsets = _Offsets(plan.offset_unit, source_text), _Offsets(plan.offset_unit, target.target_text)
    has_format = plan.markup is not None and plan.markup.format != "spans"
    message = service_pb.AlignResponse(
        request_id=request_id,
        model=model,
        source_text=source_text,
        target_text=target.target_text,
        pharaoh=format_pharaoh(target.links),
        offset_unit=number_of(OFFSET_UNITS, plan.offset_unit),
        head_source=head_source,
        usage=usage.message(),
    )
    source.fill_spans(message.source, target.source_words)
    target_offsets.fill_spans(message.target, target.target_words)
    fill_links(message.links, target.links)
    for span in target.spans:
        message.markup.add(id=span.id, begin=target_offsets.to_units(span.begin), end=target_offsets.to_units(span.end))
    if has_format:
        message.marked_target_text = target.text
        for report in target.reports:
            entry = message.markup_report.add(
                markup=report.markup, placement=number_of(PLACEMENTS, report.placement), score=report.score
            )
            entry.source.begin, entry.source.end = map(source.to_units, report.source)
            entry.target.begin, entry.target.end = map(target_offsets.to_units, report.target)
    return message


class _Offsets:
    """A text, and the offsets in it in the unit of a client."""

    def __init__(self, unit: OffsetUnit, text: str) -> None:
        self._text = text
        self._map = None if unit == "code_point" else OffsetMap(unit, text)

    def to_units(self, offset: int) -> int:
        """Returns an offset in the client's unit."""
        return offset if self._map is None else self._map.to_units(offset)

    def fill_spans(self, messages: Any, spans: Sequence[Span]) -> None:
        """Adds a message for each span, with its text."""
        fill_words(messages, self._text, spans, self._map)
