"""Between the domain and protobuf: the one module that knows how events look on the wire.

Pure functions; no engine, no gRPC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray
from sidelight.v1 import attention_pb2, model_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...kernels import Encoding, Reduction
from ..capture import AttentionArrays, AttentionKind, CapturePlan, Row
from ..models import LoadedModel
from ..request import EncoderSelf, Request, Score, Started, Step, StopReason
from ..text.tokenizer import Token

KINDS: dict[int, AttentionKind] = {
    attention_pb2.ATTENTION_KIND_CROSS: "cross",
    attention_pb2.ATTENTION_KIND_DECODER_SELF: "decoder_self",
    attention_pb2.ATTENTION_KIND_ENCODER_SELF: "encoder_self",
}
ROWS: dict[int, Row] = {
    attention_pb2.ROW_PREDICTING: "predicting",
    attention_pb2.ROW_READING: "reading",
}
REDUCTIONS: dict[int, Reduction] = {
    attention_pb2.REDUCTION_MEAN: "mean",
    attention_pb2.REDUCTION_MAX: "max",
    attention_pb2.REDUCTION_MIN: "min",
    attention_pb2.REDUCTION_SUM: "sum",
    attention_pb2.REDUCTION_PROD: "prod",
    attention_pb2.REDUCTION_ABSMAX: "absmax",
    attention_pb2.REDUCTION_L2: "l2",
}
ENCODINGS: dict[int, Encoding] = {
    attention_pb2.ENCODING_FLOAT32: "float32",
    attention_pb2.ENCODING_FLOAT16: "float16",
    attention_pb2.ENCODING_UINT8: "uint8",
}
SCORES: dict[int, Score] = {
    attention_pb2.SCORE_PROBABILITY: "probability",
    attention_pb2.SCORE_LOGIT: "logit",
    attention_pb2.SCORE_ENTROPY: "entropy",
    attention_pb2.SCORE_CROSS_ENTROPY: "cross_entropy",
    attention_pb2.SCORE_PERPLEXITY: "perplexity",
    attention_pb2.SCORE_TOP_P_SIZE: "top_p_size",
}
STOP_REASONS: dict[StopReason, text_pb2.StopReason.ValueType] = {
    "end_token": text_pb2.STOP_REASON_END_TOKEN,
    "length": text_pb2.STOP_REASON_LENGTH,
    "stop_text": text_pb2.STOP_REASON_STOP_TEXT,
    "given": text_pb2.STOP_REASON_GIVEN,
}


# By type: NumPy takes as long to name one as the rest of a message takes.
_ENCODING_OF: dict[np.dtype[Any], Any] = {np.dtype(name): number for number, name in ENCODINGS.items()}


def _number(values: dict[int, Any], word: object) -> Any:
    """The enum number of a domain word; 0 for None."""
    return next((number for number, known in values.items() if known == word), 0)


# Messages within messages are filled where they stand: protobuf copies what a constructor is given, and what is sent
# with each token is mostly such.


def _fill_token(message: text_pb2.Token, token: Token) -> None:
    message.id = token.id
    message.piece = token.piece
    message.begin = token.begin
    message.end = token.end
    message.special = token.special
    message.text = token.text


def _fill_attention(message: attention_pb2.Attention, numbers: AttentionArrays) -> None:
    """Little-endian, last axis fastest."""
    values, scales, positions = numbers
    message.shape.extend(values.shape)
    message.encoding = _ENCODING_OF[values.dtype]
    message.values = _little(values)
    if scales is not None:
        message.scales = _little(scales)
    if positions is not None:
        message.positions = _little(positions.view(np.uint32))


def _little(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="C")


def started_message(job: Request, loaded: LoadedModel, event: Started) -> service_pb.Started:
    """The header of a stream."""
    message = service_pb.Started(
        request_id=job.request_id,
        model=loaded.name,
        source_text=job.source.text,
        capture=capture_message(job.capture),
        layouts=[_layout(kind, job.capture, loaded) for kind in job.capture.kinds],
        scores=[_number(SCORES, name) for name in job.scores],
        architecture=_architecture(loaded),
        seed=event.seed,
    )
    for token in job.source.tokens:
        _fill_token(message.source.add(), token)
    for token in event.context:
        _fill_token(message.prefix.add(), token)
    return message


def _architecture(loaded: LoadedModel) -> model_pb2.Architecture.ValueType:
    if loaded.is_encoder_decoder:
        return model_pb2.ARCHITECTURE_ENCODER_DECODER
    return model_pb2.ARCHITECTURE_DECODER_ONLY


def capture_message(plan: CapturePlan) -> attention_pb2.Capture:
    """A plan in the contract's words: the request's capture with its defaults filled in."""
    if not plan.kinds:
        return attention_pb2.Capture(none=True)
    capture = attention_pb2.Capture(
        kinds=[_number(KINDS, kind) for kind in plan.kinds],
        over_heads=_number(REDUCTIONS, plan.over_heads),
        over_layers=_number(REDUCTIONS, plan.over_layers),
        row=_number(ROWS, plan.row),
        special_tokens=attention_pb2.SPECIAL_TOKENS_KEEP,
        grouping=attention_pb2.GROUPING_TOKEN,
        encoding=_number(ENCODINGS, plan.encoding),
        top_k=plan.top_k,
        method=attention_pb2.METHOD_WEIGHTS,
    )
    if plan.pairs:
        capture.heads.list.heads.extend(_pairs(plan))
    elif len(set(plan.layers.values())) == 1:
        # Kinds with different numbers of layers have no one list of them; the layouts say which are sent.
        capture.heads.layers.layers.extend(next(iter(plan.layers.values())))
    if plan.first_step or plan.end_step is not None:
        capture.steps.begin = plan.first_step
        if plan.end_step is not None:
            capture.steps.end = plan.end_step
    return capture


def _pairs(plan: CapturePlan) -> list[attention_pb2.Head]:
    return [attention_pb2.Head(layer=pair.layer, head=pair.head, weight=pair.weight) for pair in plan.pairs]


def _layout(kind: AttentionKind, plan: CapturePlan, loaded: LoadedModel) -> attention_pb2.AttentionLayout:
    axes: list[attention_pb2.Axis.ValueType] = []
    if plan.pairs:
        axes = [] if plan.over_heads else [attention_pb2.AXIS_PAIR]
    elif not plan.over_layers:
        axes = [attention_pb2.AXIS_LAYER] if plan.over_heads else [attention_pb2.AXIS_LAYER, attention_pb2.AXIS_HEAD]
    return attention_pb2.AttentionLayout(
        kind=_number(KINDS, kind),
        axes=axes,
        layers=plan.layers.get(kind, ()),
        head_count=0 if plan.pairs else loaded.heads(kind),
        pairs=_pairs(plan),
    )


def encoder_self_message(part: EncoderSelf) -> service_pb.EncoderSelf:
    """A part of the encoder's self-attention."""
    message = service_pb.EncoderSelf(first_query=part.first_query)
    _fill_attention(message.attention, part.attention)
    return message


def steps_response(steps: Iterable[Step]) -> service_pb.AttributeResponse:
    """Steps that are sent together."""
    response = service_pb.AttributeResponse()
    for step in steps:
        _fill_step(response.steps.steps.add(), step)
    return response


def _fill_step(message: service_pb.Step, step: Step) -> None:
    message.index = step.index
    _fill_token(message.token, step.token)
    message.text = step.text
    if step.scores:
        message.scores.extend(step.scores)
    if step.cross is not None:
        _fill_attention(message.cross, step.cross)
    if step.decoder_self is not None:
        _fill_attention(message.decoder_self, step.decoder_self)


def duration(seconds: float) -> Duration:
    """A span of time."""
    message = Duration()
    message.FromNanoseconds(max(0, round(seconds * 1e9)))
    return message


def model_message(loaded: LoadedModel, limits: model_pb2.RequestLimits, *, default: bool) -> model_pb2.Model:
    """A model, described."""
    return model_pb2.Model(
        name=loaded.name,
        family=loaded.family,
        architecture=_architecture(loaded),
        attentions=[
            model_pb2.ModelAttention(
                kind=_number(KINDS, kind), layers=loaded.attention_layers.num_layers(kind), heads=loaded.heads(kind)
            )
            for kind in loaded.kinds
        ],
        max_source_tokens=loaded.max_source_tokens,
        max_target_tokens=loaded.max_target_tokens,
        languages=loaded.tokenizer.languages,
        dtype=loaded.precision,
        device=str(loaded.model.device),
        default=default,
        vocabulary_size=loaded.vocabulary_size,
        capture_path=model_pb2.CAPTURE_PATH_ROWS
        if loaded.attention_layers.captures_rows
        else model_pb2.CAPTURE_PATH_MATRICES,
        limits=limits,
    )
