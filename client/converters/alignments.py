"""Between the client's types of word links and protobuf messages."""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..alignments import (
    Alignment,
    LinkFeature,
    LinkMethod,
    LinkOptions,
    Markup,
    MarkupFormat,
    MarkupReport,
    MarkupSpan,
    Placement,
    Symmetrization,
)
from ..errors import field_errors
from ..validation import check_fields
from .messages import STOP_REASONS, parse_offset_unit, parse_usage
from .observations import HEAD_SOURCES, parse_links, parse_signals, parse_spans
from .words import enum_number, enum_words

_FORMATS: dict[int, MarkupFormat] = enum_words(service_pb.MarkupFormat, "MARKUP_FORMAT_")
_LINK_METHODS: dict[int, LinkMethod] = enum_words(service_pb.LinkMethod, "LINK_METHOD_")
_FEATURES: dict[int, LinkFeature] = enum_words(service_pb.LinkFeature, "LINK_FEATURE_")
_SYMMETRIZATIONS: dict[int, Symmetrization] = enum_words(service_pb.Symmetrization, "SYMMETRIZATION_")
_PLACEMENTS: dict[int, Placement] = enum_words(service_pb.Placement, "PLACEMENT_")


def build_markup(markup: Markup) -> service_pb.Markup:
    """Builds the Markup message. Raises InvalidArgumentError."""
    check_fields(markup, "markup")
    message = service_pb.Markup(
        format=enum_number(_FORMATS, markup.format),
        split=markup.split,
        placeholders=markup.placeholders,
        split_sentences=markup.split_sentences,
    )
    if markup.strict is not None:
        message.strict = markup.strict
    with field_errors("markup.placeholder_pattern"):
        message.placeholder_pattern = markup.placeholder_pattern
    for index, span in enumerate(markup.spans):
        check_fields(span, f"markup.spans[{index}]")
        with field_errors(f"markup.spans[{index}]"):
            message.spans.add(id=span.id, begin=span.begin, end=span.end)
    return message


def build_link_options(options: LinkOptions) -> service_pb.LinkOptions:
    """Builds the LinkOptions message. Raises InvalidArgumentError."""
    check_fields(options, "link_options")
    message = service_pb.LinkOptions(features=[enum_number(_FEATURES, feature) for feature in options.features])
    with field_errors("link_options.reverse_model"):
        message.reverse_model = options.reverse_model
    if options.method is not None:
        message.method = enum_number(_LINK_METHODS, options.method)
    if options.symmetrization is not None:
        message.symmetrization = enum_number(_SYMMETRIZATIONS, options.symmetrization)
    return message


def parse_alignment(message: service_pb.AlignResponse) -> Alignment:
    """Parses the links of a pair."""
    return Alignment(
        request_id=message.request_id,
        model=message.model,
        source_text=message.source_text,
        target_text=message.target_text,
        source=parse_spans(message.source),
        target=parse_spans(message.target),
        links=parse_links(message.links),
        pharaoh=message.pharaoh,
        marked_target_text=message.marked_target_text or message.target_text,
        report=tuple(map(_parse_report, message.markup_report)),
        spans=tuple(MarkupSpan(span.id, span.begin, span.end) for span in message.markup),
        signals=parse_signals(message.signals) if message.HasField("signals") else None,
        head_source=HEAD_SOURCES.get(message.head_source),
        usage=parse_usage(message.usage) if message.HasField("usage") else None,
        offset_unit=parse_offset_unit(message.offset_unit),
        stop_reason=STOP_REASONS.get(message.stop_reason),
    )


def _parse_report(message: service_pb.MarkupReport) -> MarkupReport:
    return MarkupReport(
        message.markup,
        (message.source.begin, message.source.end),
        (message.target.begin, message.target.end),
        _PLACEMENTS.get(message.placement),
        message.score,
    )
