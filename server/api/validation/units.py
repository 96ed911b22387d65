"""A Capture's grouping and UnitOptions become a UnitPlan: how rows are grouped, and which parts of them are sent.

`check_units` needs no texts, and comes before the texts are tokenized. Raises RequestError with the path of the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sidelight.v1 import attention_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ....kernels import Encoding, Reduction
from ...errors import invalid
from ...request import UnitPlan
from ...text import Grouping, OffsetMap, OffsetUnit, Span, TokenizedText, group_tokens, shares_character
from ..enums import ENCODINGS, GROUPINGS, REDUCTIONS

# The most spans in a list. Each token is compared with each span.
MAX_SPANS = 256

_REDUCTIONS = ("over_positions", "over_steps", "over_scores")
_SPANS = ("source_spans", "target_spans", "source_slices", "target_slices")


def changes_rows(message: attention_pb2.Capture) -> bool:
    """Whether rows are grouped or cut, once they are on the host. Then they are captured as float32, whole."""
    return _grouping(message) != "token" or bool(message.units.source_slices or message.units.target_slices)


def check_units(message: service_pb.AttributeRequest) -> None:
    """Checks the grouping and the options of units, as far as that needs no tokens."""
    capture, units = message.capture, message.capture.units
    if capture.grouping not in GROUPINGS and capture.grouping:
        raise invalid("capture.grouping", "UNKNOWN_VALUE", f"{capture.grouping} has no meaning here")
    grouping = _grouping(capture)
    source_kind = message.source.WhichOneof("kind")
    if grouping != "token" and source_kind in ("token_ids", "features"):
        problem = "goes with a text: a source of token ids or of features has no words"
        raise invalid("capture.grouping", "CONTRADICTION", problem)
    for name in _REDUCTIONS:
        _check_reduction(units, name, grouping)
    for name in _SPANS:
        spans: Sequence[attention_pb2.TextSpan] = getattr(units, name)
        if not spans:
            continue
        path = f"capture.units.{name}"
        if len(spans) > MAX_SPANS:
            raise invalid(path, "TOO_MANY", f"are {len(spans):,}; there may be at most {MAX_SPANS:,}")
        if name.endswith("spans") and grouping != "span":
            raise invalid(path, "CONTRADICTION", "goes with GROUPING_SPAN")
        if name.startswith("source") and source_kind in ("token_ids", "features"):
            raise invalid(path, "CONTRADICTION", "goes with a source of text")
        if name.startswith("target") and message.WhichOneof("target") != "given":
            raise invalid(path, "CONTRADICTION", "goes with a given target")
        if name.startswith("target") and message.given.WhichOneof("kind") == "token_ids":
            raise invalid(path, "CONTRADICTION", "goes with a target of text, and this target is token ids")
    if grouping == "span" and not (units.source_spans or units.target_spans):
        raise invalid("capture.units.source_spans", "REQUIRED", "GROUPING_SPAN needs spans")


def validate_units(
    request: service_pb.AttributeRequest, source: TokenizedText, given: TokenizedText | None, offset_unit: OffsetUnit
) -> UnitPlan | None:
    """Returns how the rows of a request are grouped and cut; None if they are not. `check_units` has been called."""
    message = request.capture
    if message.none or not changes_rows(message):
        return None
    units, grouping = message.units, _grouping(message)
    source_offsets = OffsetMap(offset_unit, source.text)
    target_offsets = OffsetMap(offset_unit, "" if given is None else given.text)
    source_spans = _read_spans(units.source_spans, source_offsets, "source_spans", is_ordered=True)
    source_slices = _read_spans(units.source_slices, source_offsets, "source_slices")
    source_units: list[range] = []
    if grouping != "token":
        source_units = group_tokens(source.tokens, source.text, grouping, source_spans)
    positions = _find_positions(source, source_units, source_slices) if source_slices else None
    if positions == ():
        raise invalid("capture.units.source_slices", "EMPTY", "no token shares a character with one of these spans")
    encoding: Encoding = ENCODINGS.get(message.encoding, "float32")
    return UnitPlan(
        grouping,
        REDUCTIONS.get(units.over_positions, "sum"),
        REDUCTIONS.get(units.over_steps, "mean"),
        REDUCTIONS.get(units.over_scores, "mean"),
        source_spans,
        _read_spans(units.target_spans, target_offsets, "target_spans", is_ordered=True),
        source_slices,
        _read_spans(units.target_slices, target_offsets, "target_slices"),
        tuple(source_units),
        positions,
        encoding,
        message.top_k,
        request.contrast.subtract_attention,
    )


def _grouping(message: attention_pb2.Capture) -> Grouping:
    return GROUPINGS.get(message.grouping, "token")


def _check_reduction(units: attention_pb2.UnitOptions, name: str, grouping: Grouping) -> None:
    words: Mapping[int, Reduction] = REDUCTIONS
    value: Any = getattr(units, name)
    path = f"capture.units.{name}"
    if value and value not in words:
        raise invalid(path, "UNKNOWN_VALUE", f"{value} has no meaning here")
    if value and grouping == "token":
        raise invalid(path, "CONTRADICTION", "needs a grouping")


def _read_spans(
    spans: Sequence[attention_pb2.TextSpan], offsets: OffsetMap, name: str, *, is_ordered: bool = False
) -> tuple[Span, ...]:
    """Returns spans of a text. Spans of units must be in order, and must not overlap."""
    read: list[Span] = []
    for index, span in enumerate(spans):
        path = f"capture.units.{name}[{index}]"
        if span.end <= span.begin:
            raise invalid(f"{path}.end", "OUT_OF_RANGE", "must be after begin")
        begin = read_offset(span.begin, offsets, f"{path}.begin")
        if is_ordered and read and begin < read[-1][1]:
            raise invalid(f"{path}.begin", "OUT_OF_RANGE", "must not be before the end of the span before it")
        read.append((begin, read_offset(span.end, offsets, f"{path}.end")))
    return tuple(read)


def read_offset(offset: int, offsets: OffsetMap, field: str) -> int:
    """Returns an offset of a request in code points. Raises RequestError with the field."""
    try:
        return offsets.to_code_points(offset)
    except ValueError as error:
        raise invalid(field, "OUT_OF_RANGE", str(error)) from error


def _find_positions(source: TokenizedText, units: Sequence[range], slices: Sequence[Span]) -> tuple[int, ...]:
    """Returns the positions, or units, of the source that share a character with a slice."""
    ranges = units or [range(index, index + 1) for index in range(len(source.tokens))]
    kept = [any(shares_character(token, span) for span in slices) for token in source.tokens]
    return tuple(index for index, tokens in enumerate(ranges) if any(kept[tokens.start : tokens.stop]))
