"""An AlignRequest becomes an AlignPlan: what is linked, and the requests that the engine gets for it.

`validate_align` checks what needs no model and no tokens. The requests are AttributeRequests, which are validated as
all other requests. `find_align_field` says which field of the AlignRequest is to blame where one of them is refused.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass

from sidelight.v1 import attention_pb2, text_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ....alignment import AlignmentPreset, MarkupOptions, MarkupSpan, Symmetrization
from ....errors import RequestError, invalid
from ....models import ModelInfo
from ....text import OffsetMap, OffsetUnit
from ...enums import (
    GROUPINGS,
    LINK_FEATURES,
    MARKUP_FORMATS,
    OFFSET_UNITS,
    ROWS,
    SYMMETRIZATIONS,
    head_source_of,
    number_of,
)
from ..units import read_offset
from .links import check_link_options

# The most bytes of a source and of a target, and of links that a client brings along.
MAX_ALIGN_BYTES = 1024**2
# The most segments of a document. Each is a request of its own.
MAX_SEGMENTS = 1_000
# The most marked spans of a source.
MAX_MARKUP_SPANS = 10_000

# What contradicts links that are brought along: no model runs.
_MODEL_FIELDS = ("model", "heads", "row", "decoding", "link_options", "source_language", "target_language", "signals")

# The fields of the requests to the engine, and the fields of the AlignRequest that they come from.
_FIELD_NAMES = {"given": "target", "capture.heads": "heads", "capture.row": "row", "capture": "heads"}


@dataclass(frozen=True)
class AlignPlan:
    """What an AlignRequest asks for.

    Attributes:
        source_text: The source, with its markup.
        target_text: The target; None: the model writes it.
        markup: What the markup of the source is; None: the source has none.
        links: Links that the client brings along; None: a model makes them.
        links_tokens: Whether tokens are linked, not words.
        is_pretokenized: Whether words are what white space separates.
        min_score: The smallest score of a link.
        offset_unit: What offsets count on the wire. Here, all offsets count code points.
        reverse_model: The name of a model for the other direction; empty: one direction.
        symmetrization: How the links of two directions are joined.
    """

    source_text: str
    target_text: str | None
    markup: MarkupOptions | None
    links: str | None
    links_tokens: bool
    is_pretokenized: bool
    min_score: float
    offset_unit: OffsetUnit
    reverse_model: str
    symmetrization: Symmetrization


def validate_align(message: service_pb.AlignRequest) -> AlignPlan:
    """Returns what a message asks for. Raises RequestError with the path of the field."""
    check_link_options(message.link_options)
    source_text = _read_text(message, "source")
    target_text = _read_text(message, "target") if message.HasField("target") else None
    _check_links(message)
    _check_target_fields(message)
    if message.offset_unit not in OFFSET_UNITS:
        raise invalid("offset_unit", "UNKNOWN_VALUE", "is no unit of offsets")
    if message.row and message.row not in ROWS:
        raise invalid("row", "UNKNOWN_VALUE", f"{message.row} has no meaning here")
    if not 0 <= message.min_score <= 1:
        raise invalid("min_score", "OUT_OF_RANGE", "must be from 0 to 1")
    offset_unit = OFFSET_UNITS[message.offset_unit]
    return AlignPlan(
        source_text,
        target_text,
        _read_markup(message, source_text, offset_unit),
        message.links or None,
        _links_tokens(message),
        message.pretokenized,
        message.min_score,
        offset_unit,
        message.link_options.reverse_model,
        SYMMETRIZATIONS[message.link_options.symmetrization],
    )


def _read_text(message: service_pb.AlignRequest, field: str) -> str:
    text: text_pb2.Text = getattr(message, field)
    kind = text.WhichOneof("kind")
    if kind is None:
        raise invalid(field, "REQUIRED", "is required, as a text")
    if kind != "text":
        raise invalid(f"{field}.{kind}", "WRONG_SOURCE", "has no words: links need a text")
    if not text.text:
        raise invalid(f"{field}.text", "EMPTY", "must not be empty")
    if (num_bytes := len(text.text.encode())) > MAX_ALIGN_BYTES:
        problem = f"is {num_bytes:,} bytes long; at most {MAX_ALIGN_BYTES:,} are linked"
        raise invalid(f"{field}.text", "TEXT_TOO_LONG", problem)
    return text.text


def _check_links(message: service_pb.AlignRequest) -> None:
    """Checks that links that are brought along stand alone: no model runs."""
    if not message.links:
        return
    if not message.HasField("target"):
        raise invalid("target", "REQUIRED", "is needed: links that are brought along belong to a target")
    if (num_bytes := len(message.links.encode())) > MAX_ALIGN_BYTES:
        raise invalid("links", "TOO_MANY", f"are {num_bytes:,} bytes long; at most {MAX_ALIGN_BYTES:,} are read")
    for field, _ in message.ListFields():
        if field.name in _MODEL_FIELDS:
            raise invalid(
                field.name, "CONTRADICTION", "goes without links: no model runs where links are brought along"
            )


def _check_target_fields(message: service_pb.AlignRequest) -> None:
    """Checks what goes only with a given target, or only without."""
    if message.HasField("target"):
        if message.HasField("decoding"):
            raise invalid("decoding", "CONTRADICTION", "goes without a target: a given target is not decoded")
        if message.markup.split_sentences:
            problem = "goes without a target: the server does not know which sentence of the target belongs to which"
            raise invalid("markup.split_sentences", "CONTRADICTION", problem)
    if message.decoding.WhichOneof("strategy") == "beam":
        raise invalid("decoding.beam", "CONTRADICTION", "goes with Attribute; then align its target")


def _links_tokens(message: service_pb.AlignRequest) -> bool:
    """Returns whether tokens are linked. Raises RequestError for other units than tokens and words."""
    if not message.grouping:
        return False
    grouping = GROUPINGS.get(message.grouping)
    if grouping not in ("word", "token"):
        raise invalid(
            "grouping", "UNKNOWN_VALUE", "must be GROUPING_WORD or GROUPING_TOKEN: words or tokens are linked"
        )
    if grouping == "word":
        return False
    for name in ("links", "markup", "pretokenized"):
        if any(field.name == name for field, _ in message.ListFields()):
            raise invalid("grouping", "CONTRADICTION", f"must be GROUPING_WORD with {name}, which is about words")
    return True


def _read_markup(message: service_pb.AlignRequest, source_text: str, unit: OffsetUnit) -> MarkupOptions | None:
    if not message.HasField("markup"):
        return None
    markup = message.markup
    if markup.format not in MARKUP_FORMATS:
        raise invalid("markup.format", "UNKNOWN_VALUE", f"{markup.format} has no meaning here")
    markup_format = MARKUP_FORMATS[markup.format]
    if markup.spans and markup_format != "spans":
        raise invalid("markup.spans", "CONTRADICTION", "goes with MARKUP_FORMAT_SPANS")
    if len(markup.spans) > MAX_MARKUP_SPANS:
        problem = f"are {len(markup.spans):,}; there may be at most {MAX_MARKUP_SPANS:,}"
        raise invalid("markup.spans", "TOO_MANY", problem)
    offsets = OffsetMap(unit, source_text if markup.spans else "")
    return MarkupOptions(
        format=markup_format,
        spans=[_read_span(span, number, offsets) for number, span in enumerate(markup.spans)],
        is_strict=markup.strict if markup.HasField("strict") else None,
        can_split=markup.split,
        has_placeholders=markup.placeholders,
        placeholder_pattern=markup.placeholder_pattern,
        splits_sentences=markup.split_sentences,
        has_target=message.HasField("target"),
    )


def _read_span(span: service_pb.MarkupSpan, number: int, offsets: OffsetMap) -> MarkupSpan:
    path = f"markup.spans[{number}]"
    if span.end < span.begin:
        raise invalid(f"{path}.end", "OUT_OF_RANGE", "must not be before begin")
    begin, end = (
        read_offset(offset, offsets, f"{path}.{name}") for name, offset in (("begin", span.begin), ("end", span.end))
    )
    return MarkupSpan(span.id, begin, end)


# ---- the requests to the engine -------------------------------------------------------------------------------------


def fix_seed(message: service_pb.AlignRequest) -> None:
    """Sets the seed of sampling, so that all segments of a document draw with the same one."""
    if message.decoding.WhichOneof("strategy") == "sampling" and not message.decoding.sampling.HasField("seed"):
        message.decoding.sampling.seed = secrets.randbits(63)


def build_segment_request(
    message: service_pb.AlignRequest, loaded: ModelInfo, source: str, target: str | None
) -> service_pb.AttributeRequest:
    """Builds the request for the rows of a segment: the mean of the chosen heads for each token of the target."""
    request = service_pb.AttributeRequest(
        model=message.model,
        source=text_pb2.Text(text=source),
        source_language=message.source_language,
        target_language=message.target_language,
        capture=_make_capture(loaded.link_preset, message),
        signals=message.signals,
    )
    if target is not None:
        request.given.text = target
    elif message.HasField("decoding"):
        request.decoding.CopyFrom(message.decoding)
    return request


def build_reverse_request(
    message: service_pb.AlignRequest, reverse: ModelInfo, source: str, target: str
) -> service_pb.AttributeRequest:
    """Builds the request for the rows of the other direction: `target` is what that model reads."""
    return service_pb.AttributeRequest(
        model=message.link_options.reverse_model,
        source=text_pb2.Text(text=target),
        given=text_pb2.Text(text=source),
        source_language=message.target_language,
        target_language=message.source_language,
        capture=_make_capture(reverse.link_preset, service_pb.AlignRequest()),
    )


def build_states_request(request: service_pb.AttributeRequest, target: str) -> service_pb.AttributeRequest:
    """Builds the request for the encoder's states of a pair, from the request for its rows."""
    return service_pb.AttributeRequest(
        model=request.model,
        source=request.source,
        given=text_pb2.Text(text=target),
        source_language=request.source_language,
        target_language=request.target_language,
    )


def _make_capture(preset: AlignmentPreset, message: service_pb.AlignRequest) -> attention_pb2.Capture:
    capture = attention_pb2.Capture(
        kinds=[attention_pb2.ATTENTION_KIND_CROSS],
        over_heads=attention_pb2.REDUCTION_MEAN,
        row=message.row or number_of(ROWS, preset.row),
    )
    if preset.special_tokens == "renormalize":
        capture.special_tokens = attention_pb2.SPECIAL_TOKENS_RENORMALIZE
    if message.HasField("heads"):
        capture.heads.CopyFrom(message.heads)
    else:
        for layer, head, weight in preset.heads:
            capture.heads.list.heads.add(layer=layer, head=head, weight=weight)
    if capture.heads.WhichOneof("selection") == "layers":
        capture.over_layers = attention_pb2.REDUCTION_MEAN
    return capture


def find_head_source(message: service_pb.AlignRequest, loaded: ModelInfo) -> service_pb.HeadSource.ValueType:
    """Returns where the heads of a request come from."""
    if message.heads.WhichOneof("selection") in ("list", "layers"):
        return service_pb.HEAD_SOURCE_REQUEST
    return head_source_of(loaded.alignment)


def check_links_model(loaded: ModelInfo, field: str) -> None:
    """Raises RequestError for a model that cannot link."""
    if "cross" not in loaded.kinds:
        problem = "has no cross-attention, which links are made of: only an encoder-decoder can link"
        raise invalid(field, "NO_SUCH_ATTENTION", problem)
    if loaded.feature_shape is not None:
        raise invalid(field, "WRONG_SOURCE", "reads recordings, which have no words")


def find_align_field(error: RequestError, *, is_reverse: bool) -> RequestError:
    """Returns the error of a segment's request with the field of the AlignRequest that is to blame."""
    if is_reverse and error.field:
        return dataclasses.replace(error, field="link_options.reverse_model", message=f"refuses the pair: {error}")
    for name, own in _FIELD_NAMES.items():
        if error.field == name or error.field.startswith((f"{name}.", f"{name}[")):
            return dataclasses.replace(error, field=own + error.field[len(name) :])
    return error


def find_states_field(error: RequestError, message: service_pb.AlignRequest, *, is_reverse: bool) -> RequestError:
    """Returns the error of a request for the encoder's states with the field of the AlignRequest that is to blame."""
    if is_reverse or not error.field.startswith("given"):
        return find_align_field(error, is_reverse=is_reverse)
    features, field = list(message.link_options.features), "link_options.features"
    if features:  # otherwise calibration has chosen the feature
        field += f"[{features.index(number_of(LINK_FEATURES, 'encoder_states'))}]"
    problem = f"needs the encoder's states of the target, read as a source, which is refused: {error}"
    return dataclasses.replace(error, field=field, message=problem)
