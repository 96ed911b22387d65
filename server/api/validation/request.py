"""An AttributeRequest message becomes a Request: each field is checked, each default is filled in.

Raises RequestError with the path of the field. What the contract has and this server does not have is UNIMPLEMENTED,
and never ignored.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...capture import AttentionKind
from ...errors import invalid
from ...models import ModelInfo
from ...request import DecodingParams, FollowedTarget, GivenTarget, Request, Score
from ...text import Languages, OffsetUnit
from ..enums import OFFSET_UNITS, SCORES
from .alignment import validate_observers
from .capture import validate_capture
from .contrast import validate_contrast
from .decoding import validate_decoding, validate_probability
from .methods import find_method_room
from .texts import find_room, validate_features, validate_languages, validate_text_options, validate_texts
from .truncation import validate_truncation
from .units import check_units, validate_units

_MAX_REQUEST_ID = 128

_Target = DecodingParams | GivenTarget | FollowedTarget


def request_id_of(
    message: service_pb.AttributeRequest | service_pb.FollowStart | service_pb.AlignRequest,
) -> str:
    """Returns the request's id, or a new one. Raises RequestError if the id cannot be put into logs and trailers."""
    if len(message.request_id) > _MAX_REQUEST_ID or not message.request_id.isprintable():
        raise invalid("request_id", "MALFORMED", f"at most {_MAX_REQUEST_ID} characters, all of them printable")
    return message.request_id or uuid.uuid4().hex


def validate_request(
    message: service_pb.AttributeRequest, loaded: ModelInfo, request_id: str, *, is_follow: bool = False
) -> Request:
    """Returns the request that a message makes to a model. Raises RequestError.

    Tokenizes the texts, which takes too long for an event loop if the texts are long. In a follow stream, a message
    without `decoding` has a target that the client gives later.
    """
    offset_unit = validate_offset_unit(message)
    check_units(message)
    observers = validate_observers(message, loaded)
    truncation = validate_truncation(message)
    languages, options = validate_languages(message, loaded), validate_text_options(message, loaded)
    texts = validate_texts(message, loaded, languages, options, truncation)
    features = validate_features(message.source, loaded)
    source = texts.source
    max_target = find_room(message, loaded, source, texts.decoder_prompt_ids, is_follow=is_follow)
    num_before = loaded.max_target_tokens - max_target - is_follow
    source_length = features.num_positions if features else len(source.tokens)
    if is_follow:
        max_target = find_method_room(message.capture, loaded, source_length, num_before, max_target)
    has_parts = loaded.attention_layers.captures_rows and not message.HasField("contrast")
    target: _Target = FollowedTarget(max_target)
    if texts.given is not None:
        target = GivenTarget(texts.given)
    elif not is_follow or message.HasField("decoding"):
        target = _validate_decoding(message, loaded, languages, num_before, max_target)
    max_steps = len(target.text.tokens) if isinstance(target, GivenTarget) else target.max_new_tokens
    max_positions = _max_positions(source_length, num_before + max_steps)
    steps_per_pass = max_steps if _is_whole(target) and not has_parts else 1
    request = Request(
        request_id=request_id,
        source=source,
        decoder_prompt_ids=texts.decoder_prompt_ids,
        target=target,
        capture=validate_capture(message.capture, loaded, max_positions, steps_per_pass),
        scores=validate_scores(message),
        score_top_p=validate_score_top_p(message),
        resume_at=message.resume_at,
        prefix=texts.prefix,
        offset_unit=offset_unit,
        target_tokens_left_out=texts.num_left_out,
        has_parts=has_parts,
        features=features,
        units=validate_units(message, source, texts.given, offset_unit),
        linker=observers.linker,
        observed=observers.plans,
    )
    contrast = validate_contrast(message, loaded, languages, options, request, max_positions)
    return request if contrast is None else replace(request, contrast=contrast)


def validate_offset_unit(message: service_pb.AttributeRequest) -> OffsetUnit:
    """Returns what offsets count. Raises RequestError."""
    if message.offset_unit not in OFFSET_UNITS:
        raise invalid("offset_unit", "UNKNOWN_VALUE", "is no unit of offsets")
    return OFFSET_UNITS[message.offset_unit]


def _max_positions(source_length: int, target_length: int) -> dict[AttentionKind, int]:
    """Returns the most positions that a row of each kind can have."""
    return {"cross": source_length, "encoder_self": source_length, "decoder_self": target_length}


def _is_whole(target: _Target) -> bool:
    """Whether a target is read at once: a given one, and the hypothesis that a beam search has found."""
    return isinstance(target, GivenTarget) or (isinstance(target, DecodingParams) and target.beam is not None)


def _validate_decoding(
    message: service_pb.AttributeRequest, loaded: ModelInfo, languages: Languages, num_before: int, max_target: int
) -> DecodingParams:
    params = validate_decoding(message.decoding, loaded, languages, num_before, max_target)
    if params.do_sample and message.resume_at and not message.decoding.sampling.HasField("seed"):
        raise invalid("decoding.sampling.seed", "REQUIRED", "is needed to draw the same tokens up to resume_at")
    return params


# ---- scores ---------------------------------------------------------------------------------------------------------


def validate_scores(message: service_pb.AttributeRequest) -> tuple[Score, ...]:
    """Returns the scores of each step. Raises RequestError."""
    scores: list[Score] = []
    for index, value in enumerate(message.scores):
        field = f"scores[{index}]"
        if value not in SCORES:
            raise invalid(field, "UNKNOWN_VALUE", "is no score")
        if SCORES[value] in scores:
            raise invalid(field, "DUPLICATE", "is asked for twice")
        scores.append(SCORES[value])
    if message.HasField("score_top_p") and "top_p_size" not in scores:
        raise invalid("score_top_p", "CONTRADICTION", "goes with SCORE_TOP_P_SIZE: no other score uses it")
    return tuple(scores)


def validate_score_top_p(message: service_pb.AttributeRequest) -> float:
    """Returns the sum of probabilities that SCORE_TOP_P_SIZE counts up to. Raises RequestError."""
    return validate_probability(message, "score_top_p", "score_top_p", 0.9)
