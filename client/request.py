"""The options of an `attribute` call, and the requests built from them.

The client refuses what needs no server to judge: unknown options, wrong types, numbers out of range. The server checks
everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from grpc_health.v1 import health_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .alignments import LinkOptions, LinkUnit, Markup
from .contrasts import build_contrast
from .errors import field_errors, invalid_argument
from .parameters import (
    Capture,
    Contrast,
    Decoding,
    Head,
    OffsetUnit,
    Padding,
    Row,
    Score,
    Source,
    SpecialTokensInText,
    Truncation,
)
from .resumption import Resumption
from .validation import check_options, check_value

# 31 years, in seconds. gRPC counts nanoseconds in 64 bits: a deadline beyond the greatest number counts as over.
_MAX_TIMEOUT = 1e9


class AttributeOptions(TypedDict, total=False):
    """The keyword arguments of `attribute`. All are optional. The client refuses values of other types.

    - target: The target, if it is known: text or token ids. Without it, the model writes the target.
    - model: The name of a loaded model. Without it: the server's default model.
    - source_language, target_language: Language codes, for models that need them.
    - capture: What to keep of the attention. Without it: everything of the model's main kind.
    - scores: The scores that come with each step.
    - decoding: How the server writes the target. Without it: as the model's generation config says.
    - prefix: The beginning of the target: text or token ids.
    - request_id: An id for errors and the server's log. Without it, the server makes one.
    - resume_at: The index of the first step to send, after a broken stream.
    - resume: How many times in a row the client may call again after the stream was broken: the connection was lost, or
      the server ends. The stream goes on with the step that has not arrived, and shows no break. The default is 0.
    - special_tokens_in_text: How to treat special tokens that are written out in texts and chats, such as "</s>":
      "text" (the default), or "parse", for prompts that are rendered already.
    - add_special_tokens: Whether the tokenizer adds its own special tokens around the text of the source and of the
      target. The default is True. False is for prompts that are rendered already.
    - offset_unit: What the offsets of tokens count: "code_point" (the default), as Python's strings do, or "utf16" or
      "utf8" for programs in other languages. The texts of tokens do not depend on it.
    - truncate: What to do with a source, a prefix or a target that has too many tokens: "none" (the default) refuses
      the request; "left" or "right" leaves out tokens at the beginning or at the end. `Started` says how many.
    - padding: What to do with padding among the token ids of a source: "refuse" (the default) the request, or "mask"
      the padding, so that the model does not read it.
    - score_top_p: The p of the score "top_p_size". The default is 0.9.
    - contrast: A second context, for scores that compare two contexts and for differences of attention.
    - link_options: Links the words of source and target while the target is written: `LinkOptions()` as the model was
      calibrated. Links come with steps; the result has `alignment`.
    - signals: Whether the result has numbers that judge the target as a whole. The default is False.
    - timeout: Seconds for the whole stream. Without it, there is no limit.
    """

    target: str | Sequence[int] | None
    model: str
    source_language: str
    target_language: str
    capture: Capture | None
    scores: Sequence[Score]
    decoding: Decoding | None
    prefix: str | Sequence[int] | None
    request_id: str
    resume_at: int
    resume: int
    special_tokens_in_text: SpecialTokensInText
    add_special_tokens: bool | None
    offset_unit: OffsetUnit
    truncate: Truncation
    padding: Padding
    score_top_p: float | None
    contrast: Contrast | None
    link_options: LinkOptions | None
    signals: bool
    timeout: float | None


class AlignOptions(TypedDict, total=False):
    """The keyword arguments of `align`. All are optional. The client refuses values of other types.

    - model, source_language, target_language, request_id, offset_unit: As in `AttributeOptions`.
    - decoding: How the server writes the target where there is none. Not with `Beam`.
    - heads, layers: The heads whose mean is used: single heads, a preset by its name, or whole layers. Without both:
      the model's preset "alignment"; without a calibration, all heads of the last two thirds of the layers.
    - row: The query that predicts a token, or the query that reads the token. Without it: as the preset says.
    - unit: What is linked: "word" (the default) or "token".
    - pretokenized: Words are what white space separates. Otherwise they are Unicode's; each punctuation mark is one.
    - min_score: Links with a smaller score are left out.
    - markup: The markup of the source, to be carried over to the target.
    - link_options: How links are decided.
    - links: Links from another aligner, in the Pharaoh format. Then no model runs.
    - signals: Whether the result has signals.
    - timeout: Seconds for the answer. Without it, there is no limit.
    """

    model: str
    source_language: str
    target_language: str
    request_id: str
    offset_unit: OffsetUnit
    decoding: Decoding | None
    heads: Sequence[Head] | str | None
    layers: Sequence[int] | None
    row: Row | None
    unit: LinkUnit
    pretokenized: bool
    min_score: float
    markup: Markup | None
    link_options: LinkOptions | None
    links: str
    signals: bool
    timeout: float | None


# Options that are fields of both messages, of the same name and type.
_PLAIN_FIELDS = (
    "request_id",
    "model",
    "source_language",
    "target_language",
    "add_special_tokens",
    "score_top_p",
)


def build_attribute_request(source: Source, options: AttributeOptions) -> service_pb.AttributeRequest:
    """Builds the request of an `attribute` call.

    Raises:
        InvalidArgumentError: An option is unknown, a value is not of its option's type, or a number is out of range.
    """
    check_options(options, AttributeOptions, "option of attribute")
    validate_timeout(options.get("timeout"))
    target, decoding = options.get("target"), options.get("decoding")
    if target is not None and decoding is not None:
        raise invalid_argument("decoding", "goes without a target: a given target is not decoded")
    request = service_pb.AttributeRequest(source=converters.build_text(source, "source"))
    fill_common(request, options)
    with field_errors("resume_at"):
        request.resume_at = options.get("resume_at", 0)
    if (truncate := options.get("truncate")) is not None:
        request.truncate = converters.truncation_enum(truncate)
    if (padding := options.get("padding")) is not None:
        request.padding = converters.padding_enum(padding)
    if target is not None:
        request.given.CopyFrom(converters.build_text(target, "given"))
    if (contrast := options.get("contrast")) is not None:
        request.contrast.CopyFrom(build_contrast(contrast))
    if (link_options := options.get("link_options")) is not None:
        request.link_options.CopyFrom(converters.build_link_options(link_options))
    request.signals = options.get("signals", False)
    return request


def build_align_request(source: str, target: str | None, options: AlignOptions) -> service_pb.AlignRequest:
    """Builds the request of an `align` call. Raises InvalidArgumentError as `build_attribute_request` does."""
    check_options(options, AlignOptions, "option of align")
    validate_timeout(options.get("timeout"))
    check_value(source, str, "source")
    check_value(target, str | None, "target")
    request = service_pb.AlignRequest(source=converters.build_text(source, "source"))
    if target is not None:
        request.target.CopyFrom(converters.build_text(target, "target"))
    for field in ("request_id", "model", "source_language", "target_language", "pretokenized", "min_score", "links"):
        if (value := options.get(field)) is not None:
            with field_errors(field):
                setattr(request, field, value)
    request.signals = options.get("signals", False)
    if (offset_unit := options.get("offset_unit")) is not None:
        request.offset_unit = converters.offset_unit_enum(offset_unit)
    if (decoding := options.get("decoding")) is not None:
        request.decoding.CopyFrom(converters.build_decoding(decoding))
    if (heads := converters.build_heads(options.get("heads"), options.get("layers"), "heads")) is not None:
        request.heads.CopyFrom(heads)
    if (row := options.get("row")) is not None:
        request.row = converters.row_enum(row)
    if (unit := options.get("unit", "word")) != "word":
        request.grouping = converters.grouping_enum(unit)
    if (markup := options.get("markup")) is not None:
        request.markup.CopyFrom(converters.build_markup(markup))
    if (link_options := options.get("link_options")) is not None:
        request.link_options.CopyFrom(converters.build_link_options(link_options))
    return request


def fill_common(message: service_pb.AttributeRequest | service_pb.FollowStart, options: Mapping[str, Any]) -> None:
    """Fills in the options that `attribute` and `follow` have in common. Raises InvalidArgumentError."""
    for field in _PLAIN_FIELDS:
        if (value := options.get(field)) is not None:
            with field_errors(field):
                setattr(message, field, value)
    message.scores.extend(converters.score_enums(options.get("scores", ())))
    if (special_tokens := options.get("special_tokens_in_text")) is not None:
        message.special_tokens_in_text = converters.special_tokens_enum(special_tokens)
    if (offset_unit := options.get("offset_unit")) is not None:
        message.offset_unit = converters.offset_unit_enum(offset_unit)
    if (prefix := options.get("prefix")) is not None:
        message.prefix.CopyFrom(converters.build_text(prefix, "prefix"))
    if (capture := options.get("capture")) is not None:
        message.capture.CopyFrom(converters.build_capture(capture))
    if (decoding := options.get("decoding")) is not None:
        message.decoding.CopyFrom(converters.build_decoding(decoding))


def build_get_model_request(name: str) -> service_pb.GetModelRequest:
    """Builds the request of a `get_model` call. Raises InvalidArgumentError if the name is not a text."""
    check_value(name, str, "name")
    with field_errors("name"):
        return service_pb.GetModelRequest(name=name)


def build_health_request(name: str) -> health_pb2.HealthCheckRequest:
    """Builds the request of a `check_health` call. Raises InvalidArgumentError if the name is not a text."""
    check_value(name, str, "name")
    with field_errors("name"):
        return health_pb2.HealthCheckRequest(service=name)


def build_cancel_request(request_id: str) -> service_pb.CancelAttributionRequest:
    """Builds the request of a `cancel_attribution` call. Raises InvalidArgumentError if the id is not a text."""
    check_value(request_id, str, "request_id")
    with field_errors("request_id"):
        return service_pb.CancelAttributionRequest(request_id=request_id)


def build_resumption(options: AttributeOptions) -> Resumption:
    """Builds what the options say about broken streams. Raises InvalidArgumentError for a number below 0."""
    if (max_tries := options.get("resume", 0)) < 0:
        raise invalid_argument("resume", "must not be below 0")
    return Resumption(max_tries, validate_timeout(options.get("timeout")))


def validate_timeout(timeout: float | None) -> float | None:
    """Returns the timeout for gRPC, in seconds. Raises InvalidArgumentError unless it is finite and above 0."""
    check_value(timeout, float | None, "timeout")
    if timeout is None:
        return None
    if not 0 < timeout < float("inf"):
        raise invalid_argument("timeout", "must be above 0 seconds, and finite")
    return float(min(timeout, _MAX_TIMEOUT))
