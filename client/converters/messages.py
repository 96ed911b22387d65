"""Converts between the client's types and protobuf messages. No other module knows the messages' fields.

`build_…` makes a message for a request, `parse_…` reads a message of a response.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sidelight.v1 import attention_pb2, model_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..errors import field_errors, invalid_argument
from ..offset_units import Span, Token
from ..parameters import (
    AttentionKind,
    Beam,
    Capture,
    Decoding,
    Grouping,
    Head,
    Method,
    OffsetUnit,
    Row,
    Sampling,
    Score,
    SpecialTokens,
    TextSpan,
    UnitOptions,
)
from ..results import (
    AttentionLayout,
    EncoderSelf,
    Finished,
    FloatArray,
    Hypothesis,
    Started,
    Step,
    StopReason,
    Unit,
    Usage,
)
from ..validation import check_fields
from .attention_arrays import parse_attention, parse_special_shares
from .observations import parse_links, parse_signals, parse_word_alignment
from .policy import parse_decision
from .words import enum_number, enum_words

_KINDS: dict[int, AttentionKind] = enum_words(attention_pb2.AttentionKind, "ATTENTION_KIND_")
_REDUCTIONS: dict[int, str] = enum_words(attention_pb2.Reduction, "REDUCTION_")
_ROWS: dict[int, Row] = enum_words(attention_pb2.Row, "ROW_")
_METHODS: dict[int, Method] = enum_words(attention_pb2.Method, "METHOD_")
_SPECIAL_TOKENS: dict[int, SpecialTokens] = enum_words(attention_pb2.SpecialTokens, "SPECIAL_TOKENS_")
_GROUPINGS: dict[int, Grouping] = enum_words(attention_pb2.Grouping, "GROUPING_")
_ENCODINGS: dict[int, str] = enum_words(attention_pb2.Encoding, "ENCODING_")
_SCORES: dict[int, Score] = enum_words(attention_pb2.Score, "SCORE_")
_AXES: dict[int, Any] = enum_words(attention_pb2.Axis, "AXIS_")
_EARLY_STOPPINGS: dict[int, str] = enum_words(text_pb2.EarlyStopping, "EARLY_STOPPING_")
STOP_REASONS: dict[int, StopReason] = enum_words(text_pb2.StopReason, "STOP_REASON_")
_SPECIAL_TOKENS_IN_TEXT: dict[int, str] = enum_words(text_pb2.SpecialTokensInText, "SPECIAL_TOKENS_IN_TEXT_")

_OFFSET_UNITS: dict[int, OffsetUnit] = enum_words(text_pb2.OffsetUnit, "OFFSET_UNIT_")
_TRUNCATIONS: dict[int, str] = enum_words(text_pb2.Truncation, "TRUNCATION_")
_PADDINGS: dict[int, str] = enum_words(text_pb2.Padding, "PADDING_")


# ---- requests -------------------------------------------------------------------------------------------------------


def special_tokens_enum(word: str) -> Any:
    """Returns the contract's number for the treatment of special tokens in texts."""
    return enum_number(_SPECIAL_TOKENS_IN_TEXT, word)


def offset_unit_enum(word: str) -> Any:
    """Returns the contract's number for a unit of offsets."""
    return enum_number(_OFFSET_UNITS, word)


def truncation_enum(word: str) -> Any:
    """Returns the contract's number for the truncation of texts."""
    return enum_number(_TRUNCATIONS, word)


def padding_enum(word: str) -> Any:
    """Returns the contract's number for the treatment of padding."""
    return enum_number(_PADDINGS, word)


def build_heads(
    heads: Sequence[Head] | str | None, layers: Sequence[int] | None, field: str
) -> attention_pb2.HeadSelection | None:
    """Builds the selection of heads, of layers, or of a preset; None where nothing is selected."""
    if heads is not None and layers is not None:
        raise invalid_argument(field, "either single heads or whole layers, not both")
    message = attention_pb2.HeadSelection()
    if isinstance(heads, str):
        with field_errors(f"{field}.preset"):
            message.preset = heads
    elif heads is not None:
        with field_errors(f"{field}.list"):
            message.list.CopyFrom(attention_pb2.HeadList(heads=[_build_head(head) for head in heads]))
    elif layers is not None:
        with field_errors(f"{field}.layers"):
            message.layers.CopyFrom(attention_pb2.LayerList(layers=layers))
    else:
        return None
    return message


def row_enum(word: str) -> Any:
    """Returns the contract's number for a row."""
    return enum_number(_ROWS, word)


def grouping_enum(word: str) -> Any:
    """Returns the contract's number for a grouping."""
    return enum_number(_GROUPINGS, word)


def build_capture(capture: Capture) -> attention_pb2.Capture:
    """Builds the Capture message. Raises InvalidArgumentError."""
    check_fields(capture, "capture", {"heads": "heads.list", "layers": "heads.layers"})
    message = attention_pb2.Capture(
        kinds=[enum_number(_KINDS, kind) for kind in capture.kinds],
        over_heads=enum_number(_REDUCTIONS, capture.over_heads),
        over_layers=enum_number(_REDUCTIONS, capture.over_layers),
        none=capture.none,
    )
    # Defaults stay unset on the wire: "none" contradicts every other field that is set.
    if capture.row is not None:
        message.row = enum_number(_ROWS, capture.row)
    if capture.encoding != "float32":
        message.encoding = enum_number(_ENCODINGS, capture.encoding)
    if capture.method != "weights":
        message.method = enum_number(_METHODS, capture.method)
    if capture.special_tokens is not None:
        message.special_tokens = enum_number(_SPECIAL_TOKENS, capture.special_tokens)
    with field_errors("capture.top_k"):
        message.top_k = capture.top_k
    if (heads := build_heads(capture.heads, capture.layers, "capture.heads")) is not None:
        message.heads.CopyFrom(heads)
    if capture.steps is not None:
        with field_errors("capture.steps"):
            message.steps.CopyFrom(attention_pb2.StepSpan(begin=capture.steps[0], end=capture.steps[1]))
    if capture.grouping != "token":
        message.grouping = enum_number(_GROUPINGS, capture.grouping)
    if capture.units is not None:
        message.units.CopyFrom(_build_units(capture.units))
    return message


def _build_units(units: UnitOptions) -> attention_pb2.UnitOptions:
    check_fields(units, "capture.units")
    message = attention_pb2.UnitOptions(
        over_positions=enum_number(_REDUCTIONS, units.over_positions),
        over_steps=enum_number(_REDUCTIONS, units.over_steps),
        over_scores=enum_number(_REDUCTIONS, units.over_scores),
    )
    for name in ("source_spans", "target_spans", "source_slices", "target_slices"):
        spans: Sequence[TextSpan] = getattr(units, name)
        for index, (begin, end) in enumerate(spans):
            with field_errors(f"capture.units.{name}[{index}]"):
                getattr(message, name).add(begin=begin, end=end)
    return message


def _build_head(head: Head) -> attention_pb2.Head:
    return attention_pb2.Head(layer=head[0], head=head[1], weight=head[2] if len(head) == 3 else None)


def build_decoding(decoding: Decoding) -> text_pb2.Decoding:
    """Builds the Decoding message. Raises InvalidArgumentError."""
    check_fields(decoding, "decoding")
    message = text_pb2.Decoding()
    for name in ("max_new_tokens", "min_new_tokens", "ignore_eos", "repetition_penalty", "no_repeat_ngram_size"):
        _set_field(message, name, getattr(decoding, name), "decoding")
    for index, text in enumerate(decoding.stop):
        with field_errors(f"decoding.stop[{index}]"):
            message.stop.append(text)
    strategy = decoding.strategy
    if isinstance(strategy, Sampling):
        check_fields(strategy, "decoding.sampling")
        message.sampling.SetInParent()
        for name in ("temperature", "top_k", "top_p", "seed"):
            _set_field(message.sampling, name, getattr(strategy, name), "decoding.sampling")
    elif isinstance(strategy, Beam):
        check_fields(strategy, "decoding.beam")
        for name in ("width", "length_penalty", "hypotheses"):
            _set_field(message.beam, name, getattr(strategy, name), "decoding.beam")
        message.beam.early_stopping = enum_number(_EARLY_STOPPINGS, strategy.early_stopping)
    elif strategy is not None:
        message.greedy.SetInParent()
    return message


def _set_field(message: Any, name: str, value: Any, path: str) -> None:
    """Sets a field, unless the value is None. Raises InvalidArgumentError with the path of the field."""
    if value is not None:
        with field_errors(f"{path}.{name}"):
            setattr(message, name, value)


def score_enums(scores: Sequence[Score]) -> list[attention_pb2.Score.ValueType]:
    """Returns the contract's numbers for scores."""
    return [enum_number(_SCORES, score) for score in scores]


# ---- responses ------------------------------------------------------------------------------------------------------


def parse_token(message: text_pb2.Token) -> Token:
    """Parses a Token message."""
    return Token(message.id, message.piece, message.begin, message.end, message.special, message.text)


def parse_started(message: service_pb.Started) -> Started:
    """Parses the header of a stream."""
    layouts = [_parse_layout(layout) for layout in message.layouts]
    return Started(
        request_id=message.request_id,
        model=message.model,
        source_text=message.source_text,
        source=tuple(map(parse_token, message.source)),
        prefix=tuple(map(parse_token, message.prefix)),
        layouts={layout.kind: layout for layout in layouts},
        scores=tuple(_SCORES[score] for score in message.scores),
        row=_ROWS.get(message.capture.row, "predicting"),
        is_encoder_decoder=message.architecture == model_pb2.ARCHITECTURE_ENCODER_DECODER,
        seed=message.seed if message.HasField("seed") else None,
        top_k=message.capture.top_k,
        offset_unit=parse_offset_unit(message.offset_unit),
        source_tokens_left_out=message.source_tokens_left_out,
        target_tokens_left_out=message.target_tokens_left_out,
        source_position_count=message.source_position_count,
        method=_METHODS.get(message.capture.method, "weights"),
        grouping=_GROUPINGS.get(message.capture.grouping, "token"),
        source_units=_parse_units(message.source_units, message.source),
        prefix_units=_parse_units(message.prefix_units, message.prefix),
        sent_positions=tuple(message.source_positions) if message.capture.units.source_slices else None,
        special_tokens=_SPECIAL_TOKENS.get(message.capture.special_tokens, "keep"),
        is_share=_is_share(message.capture),
    )


def _is_share(capture: attention_pb2.Capture) -> bool:
    """Whether no number of a row is greater than 1: there are neither norms of values, nor sums over heads or steps."""
    reductions = (capture.over_heads, capture.over_layers, capture.units.over_steps)
    has_sums = any(_REDUCTIONS.get(reduction) in ("sum", "l2") for reduction in reductions)
    return not has_sums and _METHODS.get(capture.method) != "value_norms"


def _parse_units(units: Iterable[service_pb.Span], tokens: Iterable[text_pb2.Token]) -> tuple[Span, ...]:
    """Parses the units of a text. A special token is a unit of its own, which has its piece."""
    pieces = [token.piece for token in tokens if token.special]
    spans = [_parse_span(span) for span in units]
    if sum(span.special for span in spans) != len(pieces):  # other tokens that cover nothing are units, too
        return tuple(spans)
    remaining = iter(pieces)
    return tuple(replace(span, piece=next(remaining)) if span.special else span for span in spans)


def _parse_span(message: service_pb.Span) -> Span:
    return Span(message.begin, message.end, message.text)


def _parse_layout(message: attention_pb2.AttentionLayout) -> AttentionLayout:
    return AttentionLayout(
        kind=_KINDS[message.kind],
        axes=tuple(_AXES[axis] for axis in message.axes),
        layers=tuple(message.layers),
        head_count=message.head_count,
        pairs=tuple((pair.layer, pair.head) for pair in message.pairs),
        weights=tuple(pair.weight if pair.HasField("weight") else 1.0 for pair in message.pairs),
    )


def parse_step(message: service_pb.Step, header: Started) -> Step:
    """Parses a step. The header has the names of its scores and the numbers of its positions."""
    num_seen = header.first_position + message.index + (header.row == "reading")
    cross = decoder_self = None
    if message.HasField("cross"):
        cross = parse_attention(message.cross, header.source_length, top_k=header.top_k)
    if message.HasField("decoder_self"):
        decoder_self = parse_attention(message.decoder_self, num_seen, top_k=header.top_k)
    return Step(
        index=message.index,
        token=parse_token(message.token),
        text=message.text,
        cross=cross,
        decoder_self=decoder_self,
        scores=dict(zip(header.scores, message.scores, strict=True)),
        special_shares=_parse_shares(message),
        decision=parse_decision(message.decision) if message.HasField("decision") else None,
        links=parse_links(message.links),
    )


def _parse_shares(message: service_pb.Step | service_pb.Unit) -> dict[AttentionKind, FloatArray]:
    """Parses the shares of special tokens of each kind that has them."""
    attentions: dict[AttentionKind, attention_pb2.Attention] = {
        "cross": message.cross,
        "decoder_self": message.decoder_self,
    }
    return {kind: parse_special_shares(a) for kind, a in attentions.items() if a.special_shares}


def parse_unit(message: service_pb.Unit, header: Started) -> Unit:
    """Parses a unit. The header has the names of its scores and the numbers of its positions."""
    cross = decoder_self = None
    if message.HasField("cross"):
        cross = parse_attention(message.cross, header.source_length, top_k=header.top_k)
    if message.HasField("decoder_self"):
        num_seen = header.first_position + message.index + 1
        decoder_self = parse_attention(message.decoder_self, num_seen, top_k=header.top_k)
    return Unit(
        index=message.index,
        span=_parse_span(message.span),
        first_step=message.first_step,
        end_step=message.end_step,
        cross=cross,
        decoder_self=decoder_self,
        scores=dict(zip(header.scores, message.scores, strict=True)),
        special_shares=_parse_shares(message),
    )


def parse_encoder_self(message: service_pb.EncoderSelf, header: Started) -> EncoderSelf:
    """Parses a part of encoder self-attention into `[queries, positions, ...]`, and the shares `[queries, ...]`."""
    attention = parse_attention(message.attention, header.source_length, axis=1, top_k=header.top_k)
    shares = message.attention.special_shares
    shares_of_rows = parse_special_shares(message.attention, axis=1) if shares else None
    return EncoderSelf(attention, shares_of_rows, message.first_query)


def parse_finished(message: service_pb.Finished) -> Finished:
    """Parses the end of a stream."""
    return Finished(
        text=message.text,
        stop_reason=STOP_REASONS[message.stop_reason],
        usage=parse_usage(message.usage),
        hypotheses=tuple(map(_parse_hypothesis, message.hypotheses)),
        signals=parse_signals(message.signals) if message.HasField("signals") else None,
        alignment=parse_word_alignment(message.alignment) if message.HasField("alignment") else None,
    )


def _parse_hypothesis(message: service_pb.Hypothesis) -> Hypothesis:
    tokens = tuple(map(parse_token, message.tokens))
    return Hypothesis(message.text, tokens, message.score, STOP_REASONS[message.stop_reason])


def parse_offset_unit(number: int) -> OffsetUnit:
    """Parses what offsets count."""
    return _OFFSET_UNITS.get(number, "code_point")


def parse_usage(message: service_pb.Usage) -> Usage:
    """Parses the cost of a request."""
    return Usage(
        source_tokens=message.source_tokens,
        target_tokens=message.target_tokens,
        attention_bytes=message.attention_bytes,
        queue_time=message.queue_time.ToTimedelta().total_seconds(),
        time_to_first_step=message.time_to_first_step.ToTimedelta().total_seconds(),
        total_time=message.total_time.ToTimedelta().total_seconds(),
        seed=message.seed if message.HasField("seed") else None,
    )
