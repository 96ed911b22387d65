"""The description of a model."""

from __future__ import annotations

import dataclasses

from grpc_health.v1 import health_pb2
from sidelight.v1 import attention_pb2, model_pb2

from ..models import Calibration, CapturePath, Model, ModelAttention, RequestLimits
from ..parameters import AttentionKind, Method, Row, SpecialTokens
from .words import enum_words

_KINDS: dict[int, AttentionKind] = enum_words(attention_pb2.AttentionKind, "ATTENTION_KIND_")
_METHODS: dict[int, Method] = enum_words(attention_pb2.Method, "METHOD_")
_ROWS: dict[int, Row] = enum_words(attention_pb2.Row, "ROW_")
_SPECIAL_TOKENS: dict[int, SpecialTokens] = enum_words(attention_pb2.SpecialTokens, "SPECIAL_TOKENS_")
_CAPTURE_PATHS: dict[int, CapturePath] = enum_words(model_pb2.CapturePath, "CAPTURE_PATH_")


def parse_model(message: model_pb2.Model) -> Model:
    """Parses the description of a model."""
    return Model(
        name=message.name,
        family=message.family,
        is_encoder_decoder=message.architecture == model_pb2.ARCHITECTURE_ENCODER_DECODER,
        attentions={_KINDS[size.kind]: ModelAttention(size.layers, size.heads) for size in message.attentions},
        max_source_tokens=message.max_source_tokens,
        max_target_tokens=message.max_target_tokens,
        languages=tuple(message.languages),
        dtype=message.dtype,
        device=message.device,
        default=message.default,
        vocabulary_size=message.vocabulary_size,
        batches=message.batches,
        feature_shape=tuple(message.feature_shape),
        methods=tuple(_METHODS[method] for method in message.methods if method in _METHODS),
        word_boundaries=message.word_boundaries,
        presets=tuple(message.presets),
        capture_path=_CAPTURE_PATHS.get(message.capture_path),
        limits=_parse_limits(message.limits) if message.HasField("limits") else None,
        calibration=_parse_calibration(message.calibration) if message.HasField("calibration") else None,
    )


def _parse_limits(message: model_pb2.RequestLimits) -> RequestLimits:
    return RequestLimits(**{field.name: getattr(message, field.name) for field in dataclasses.fields(RequestLimits)})


def _parse_calibration(message: model_pb2.Calibration) -> Calibration:
    return Calibration(
        heads=tuple((head.layer, head.head, head.weight) for head in message.heads),
        row=_ROWS.get(message.row, "predicting"),
        special_tokens=_SPECIAL_TOKENS.get(message.special_tokens, "keep"),
        pairs=message.pairs,
        reference=message.reference,
        alignment_error_rate=message.alignment_error_rate,
        precision=message.precision,
        recall=message.recall,
        has_lexicon=message.has_lexicon,
        lexicon_entries=message.lexicon_entries,
        has_encoder_states=message.has_encoder_states,
    )


def parse_health(message: health_pb2.HealthCheckResponse) -> bool:
    """Returns whether the answer of the health service says SERVING."""
    return message.status == health_pb2.HealthCheckResponse.SERVING
