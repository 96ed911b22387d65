"""The domain's outputs and models as protobuf messages. Pure functions."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray
from sidelight.v1 import attention_pb2, model_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..alignment import PRESET_NAME, Alignment, AlignmentPreset, Link, Signals, format_pharaoh
from ..capture import AttentionArrays, AttentionKind, CapturePlan
from ..models import ModelInfo
from ..request import (
    AwaitingSource,
    EncoderSelf,
    Finished,
    Hypothesis,
    Request,
    Started,
    Step,
    TextSpan,
    Unit,
    UnitPlan,
)
from ..text import WORD_BOUNDARIES, OffsetMap, OffsetUnit, Span, Token
from .enums import (
    ATTENTION_KINDS,
    ENCODING_OF_DTYPE,
    ENCODINGS,
    GROUPINGS,
    METHODS,
    OFFSET_UNITS,
    REDUCTIONS,
    ROWS,
    SCORES,
    STOP_REASONS,
    head_source_of,
    number_of,
)
from .offsets import RequestOffsets

# A message inside a message is filled in its place: protobuf copies what a constructor gets, and most of what is sent
# with each token is such a message.


def _fill_token(message: text_pb2.Token, token: Token, offsets: OffsetMap | None) -> None:
    """`offsets` are of the token's text. None: offsets count code points."""
    message.id = token.id
    message.piece = token.piece
    if offsets is None:
        message.begin = token.begin
        message.end = token.end
    else:
        message.begin = offsets.to_units(token.begin)
        message.end = offsets.to_units(token.end, token.open_bytes)
    message.special = token.special
    message.text = token.text


def _fill_attention(message: attention_pb2.Attention, attention: AttentionArrays) -> None:
    """Writes arrays as little-endian bytes, last axis fastest."""
    values, scales, positions, shares = attention
    message.shape.extend(values.shape)
    message.encoding = ENCODING_OF_DTYPE[values.dtype]
    message.values = _little_endian(values)
    if scales is not None:
        message.scales = _little_endian(scales)
    if positions is not None:
        message.positions = _little_endian(positions.view(np.uint32))
    if shares is not None:
        message.special_shares.extend(shares.ravel())


def _little_endian(array: NDArray[Any]) -> bytes:
    return (array if sys.byteorder == "little" else array.byteswap()).tobytes()


# ---- outputs --------------------------------------------------------------------------------------------------------


def started_message(
    request: Request, loaded: ModelInfo, started: Started, offsets: RequestOffsets | None
) -> service_pb.Started:
    """Returns the header of a stream."""
    message = service_pb.Started(
        request_id=request.request_id,
        model=loaded.name,
        source_text=request.source.text,
        capture=capture_message(request.capture),
        layouts=[_layout_message(kind, request.capture, loaded) for kind in request.capture.kinds],
        scores=[number_of(SCORES, score) for score in request.scores],
        architecture=_architecture(loaded),
        seed=started.seed,
        offset_unit=number_of(OFFSET_UNITS, request.offset_unit),
        source_tokens_left_out=request.source.num_left_out,
        target_tokens_left_out=request.target_tokens_left_out,
    )
    if offsets is not None:
        offsets.add_started(started)
    if request.features is not None:
        message.source_position_count = request.features.num_positions
    for token in request.source.tokens:
        _fill_token(message.source.add(), token, offsets and offsets.source)
    for token in started.decoder_prompt:
        _fill_token(message.prefix.add(), token, offsets and offsets.target)
    for span in started.source_units:
        _fill_span(message.source_units.add(), span, offsets and offsets.source)
    for span in started.prefix_units:
        _fill_span(message.prefix_units.add(), span, offsets and offsets.target)
    if request.units is not None:
        _fill_units(message, request.units, offsets)
    return message


def capture_message(plan: CapturePlan) -> attention_pb2.Capture:
    """Returns a plan in the contract's words: the request's capture with its defaults filled in."""
    if not plan.kinds:
        return attention_pb2.Capture(none=True)
    message = attention_pb2.Capture(
        kinds=[number_of(ATTENTION_KINDS, kind) for kind in plan.kinds],
        over_heads=number_of(REDUCTIONS, plan.over_heads),
        over_layers=number_of(REDUCTIONS, plan.over_layers),
        row=number_of(ROWS, plan.row),
        special_tokens=attention_pb2.SPECIAL_TOKENS_RENORMALIZE
        if plan.leaves_out_special
        else attention_pb2.SPECIAL_TOKENS_KEEP,
        grouping=attention_pb2.GROUPING_TOKEN,
        encoding=number_of(ENCODINGS, plan.encoding),
        top_k=plan.top_k,
        method=number_of(METHODS, plan.method.name),
    )
    if plan.pairs:
        message.heads.list.heads.extend(_head_messages(plan))
    elif len(set(plan.layers.values())) == 1:
        # Kinds with different numbers of layers have no common list of layers. The layouts say which layers are sent.
        message.heads.layers.layers.extend(next(iter(plan.layers.values())))
    if plan.first_step or plan.end_step is not None:
        message.steps.begin = plan.first_step
        if plan.end_step is not None:
            message.steps.end = plan.end_step
    return message


def _fill_units(started: service_pb.Started, units: UnitPlan, offsets: RequestOffsets | None) -> None:
    """Writes what a request with a UnitPlan has asked for, and which source positions are sent."""
    started.source_positions.extend(units.source_positions or ())
    message = started.capture
    message.grouping = number_of(GROUPINGS, units.grouping)
    message.encoding = number_of(ENCODINGS, units.encoding)
    message.top_k = units.top_k
    if units.is_grouped:
        message.units.over_positions = number_of(REDUCTIONS, units.over_positions)
        message.units.over_steps = number_of(REDUCTIONS, units.over_steps)
        message.units.over_scores = number_of(REDUCTIONS, units.over_scores)
    source, target = (None, None) if offsets is None else (offsets.source, offsets.target)
    _fill_text_spans(message.units.source_spans, units.source_spans, source)
    _fill_text_spans(message.units.target_spans, units.target_spans, target)
    _fill_text_spans(message.units.source_slices, units.source_slices, source)
    _fill_text_spans(message.units.target_slices, units.target_slices, target)


def _fill_text_spans(messages: Any, spans: Iterable[Span], offsets: OffsetMap | None) -> None:
    for span in spans:
        begin, end = span if offsets is None else map(offsets.to_units, span)
        messages.add(begin=begin, end=end)


def _head_messages(plan: CapturePlan) -> list[attention_pb2.Head]:
    return [attention_pb2.Head(layer=head.layer, head=head.head, weight=head.weight) for head in plan.pairs]


def _layout_message(kind: AttentionKind, plan: CapturePlan, loaded: ModelInfo) -> attention_pb2.AttentionLayout:
    axes: list[attention_pb2.Axis.ValueType] = []
    if plan.pairs:
        axes = [] if plan.over_heads else [attention_pb2.AXIS_PAIR]
    elif not plan.over_layers:
        axes = [attention_pb2.AXIS_LAYER] if plan.over_heads else [attention_pb2.AXIS_LAYER, attention_pb2.AXIS_HEAD]
    return attention_pb2.AttentionLayout(
        kind=number_of(ATTENTION_KINDS, kind),
        axes=axes,
        layers=plan.layers.get(kind, ()),
        head_count=0 if plan.pairs else loaded.heads(kind),
        pairs=_head_messages(plan),
    )


def encoder_self_message(part: EncoderSelf) -> service_pb.EncoderSelf:
    """Returns a part of the encoder's self-attention."""
    message = service_pb.EncoderSelf(first_query=part.first_query)
    _fill_attention(message.attention, part.attention)
    return message


def fill_step(message: service_pb.Step, step: Step, offsets: RequestOffsets | None) -> None:
    """Writes a step into a message. `offsets` count in the client's unit, and learn of each step in order."""
    if offsets is not None:
        offsets.add_step(step)
    message.index = step.index
    _fill_token(message.token, step.token, offsets and offsets.target)
    message.text = step.text
    if step.scores:
        message.scores.extend(step.scores)
    if step.cross is not None:
        _fill_attention(message.cross, step.cross)
    if step.decoder_self is not None:
        _fill_attention(message.decoder_self, step.decoder_self)
    if step.decision is not None:
        decision = message.decision
        decision.decision = service_pb.DECISION_HOLD if step.decision.is_held else service_pb.DECISION_COMMIT
        decision.source_token = step.decision.source_token
        decision.firm_source_tokens = step.decision.num_firm
    if step.links:
        fill_links(message.links, step.links)


def awaiting_source_message(waiting: AwaitingSource) -> service_pb.AwaitingSource:
    """Returns how far a follow stream has written."""
    return service_pb.AwaitingSource(step_count=waiting.num_steps, firm_source_tokens=waiting.num_firm)


def fill_unit(message: service_pb.Unit, unit: Unit, offsets: RequestOffsets | None) -> None:
    """Writes a unit into an empty message."""
    if offsets is not None:
        offsets.add_unit(unit)
    message.index = unit.index
    _fill_span(message.span, unit.span, offsets and offsets.target)
    message.first_step = unit.first_step
    message.end_step = unit.end_step
    message.scores.extend(unit.scores)
    if unit.cross is not None:
        _fill_attention(message.cross, unit.cross)
    if unit.decoder_self is not None:
        _fill_attention(message.decoder_self, unit.decoder_self)


def _fill_span(message: service_pb.Span, span: TextSpan, offsets: OffsetMap | None) -> None:
    message.begin, message.end, message.text = span
    if offsets is not None:
        message.begin, message.end = offsets.to_units(span.begin), offsets.to_units(span.end)


def finished_message(
    finished: Finished, usage: service_pb.Usage, request: Request, loaded: ModelInfo
) -> service_pb.Finished:
    """Returns the end of a stream."""
    stop_reason = number_of(STOP_REASONS, finished.stop_reason)
    message = service_pb.Finished(text=finished.text, stop_reason=stop_reason, usage=usage)
    if finished.signals is not None:
        message.signals.CopyFrom(signals_message(finished.signals))
    if finished.alignment is not None:
        _fill_alignment(message.alignment, finished.alignment, request, finished.text)
        message.alignment.head_source = head_source_of(loaded.alignment)
    for hypothesis in finished.hypotheses:
        _fill_hypothesis(message.hypotheses.add(), hypothesis, request.offset_unit)
    return message


def _fill_alignment(message: service_pb.Alignment, alignment: Alignment, request: Request, text: str) -> None:
    """`text` is the text of the target."""
    texts = (request.source.text, alignment.source, message.source), (text, alignment.target, message.target)
    for whole, words, spans in texts:
        offsets = None if request.offset_unit == "code_point" else OffsetMap(request.offset_unit, whole)
        fill_words(spans, whole, words, offsets)
    fill_links(message.links, alignment.links)
    message.pharaoh = format_pharaoh(alignment.links)


def fill_words(messages: Any, text: str, words: Iterable[Span], offsets: OffsetMap | None) -> None:
    """Adds a message for each word of a text."""
    for begin, end in words:
        _fill_span(messages.add(), TextSpan(begin, end, text[begin:end]), offsets)


def fill_links(messages: Any, links: Iterable[Link]) -> None:
    """Adds a message for each link."""
    for source, target, score in links:
        messages.add(source=source, target=target, score=score)


def signals_message(signals: Signals) -> service_pb.Signals:
    """Returns the signals of a target. A number that there is not stays unset."""
    return service_pb.Signals(**dataclasses.asdict(signals))


def _fill_hypothesis(message: service_pb.Hypothesis, hypothesis: Hypothesis, offset_unit: OffsetUnit) -> None:
    message.text = hypothesis.text
    offsets = None if offset_unit == "code_point" else OffsetMap(offset_unit, hypothesis.text)
    for token in hypothesis.tokens:
        _fill_token(message.tokens.add(), token, offsets)
    message.score = hypothesis.score
    message.stop_reason = number_of(STOP_REASONS, hypothesis.stop_reason)


def duration_message(seconds: float) -> Duration:
    """Returns a span of time."""
    message = Duration()
    message.FromNanoseconds(max(0, round(seconds * 1e9)))
    return message


# ---- models ---------------------------------------------------------------------------------------------------------


def model_message(loaded: ModelInfo, limits: model_pb2.RequestLimits, *, default: bool) -> model_pb2.Model:
    """Returns the description of a model."""
    return model_pb2.Model(
        name=loaded.name,
        family=loaded.family,
        architecture=_architecture(loaded),
        attentions=[
            model_pb2.ModelAttention(
                kind=number_of(ATTENTION_KINDS, kind),
                layers=loaded.attention_layers.num_layers(kind),
                heads=loaded.heads(kind),
            )
            for kind in loaded.kinds
        ],
        max_source_tokens=loaded.max_source_tokens,
        max_target_tokens=loaded.max_target_tokens,
        languages=loaded.tokenizer.languages,
        dtype=loaded.precision,
        device=loaded.device,
        default=default,
        vocabulary_size=loaded.vocabulary_size,
        capture_path=model_pb2.CAPTURE_PATH_ROWS
        if loaded.attention_layers.captures_rows
        else model_pb2.CAPTURE_PATH_MATRICES,
        limits=limits,
        batches=loaded.has_slots,
        feature_shape=loaded.feature_shape or (),
        methods=[number_of(METHODS, name) for name in loaded.attention_layers.methods],
        word_boundaries=WORD_BOUNDARIES,
        presets=() if loaded.alignment is None else (PRESET_NAME,),
        calibration=_calibration_message(loaded.alignment),
    )


def _calibration_message(preset: AlignmentPreset | None) -> model_pb2.Calibration | None:
    """Returns what was measured of a preset; None where nothing was."""
    if preset is None or preset.figures is None:
        return None
    return model_pb2.Calibration(
        heads=[attention_pb2.Head(layer=layer, head=head, weight=weight) for layer, head, weight in preset.heads],
        row=number_of(ROWS, preset.row),
        special_tokens=attention_pb2.SpecialTokens.Value(f"SPECIAL_TOKENS_{preset.special_tokens.upper()}"),
        pairs=preset.figures.num_pairs,
        reference=preset.figures.reference,
        alignment_error_rate=preset.figures.error_rate,
        precision=preset.figures.precision,
        recall=preset.figures.recall,
        has_lexicon=preset.lexicon is not None,
        lexicon_entries=0 if preset.lexicon is None else len(preset.lexicon),
        has_encoder_states="encoder_states" in preset.weights,
    )


def _architecture(loaded: ModelInfo) -> model_pb2.Architecture.ValueType:
    if loaded.is_encoder_decoder:
        return model_pb2.ARCHITECTURE_ENCODER_DECODER
    return model_pb2.ARCHITECTURE_DECODER_ONLY
