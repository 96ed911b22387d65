"""Parses links between words, and signals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..offset_units import Span
from ..results import HeadSource, Link, Signals, WordAlignment
from .words import enum_words

HEAD_SOURCES: dict[int, HeadSource] = enum_words(service_pb.HeadSource, "HEAD_SOURCE_")


def parse_spans(messages: Iterable[service_pb.Span]) -> tuple[Span, ...]:
    """Parses spans of a text, with their characters."""
    return tuple(Span(span.begin, span.end, span.text) for span in messages)


def parse_links(messages: Iterable[service_pb.Link]) -> tuple[Link, ...]:
    """Parses links between words."""
    return tuple(Link(message.source, message.target, message.score) for message in messages)


def parse_word_alignment(message: service_pb.Alignment) -> WordAlignment:
    """Parses the words of both texts and their links."""
    source, target = parse_spans(message.source), parse_spans(message.target)
    return WordAlignment(
        source, target, parse_links(message.links), message.pharaoh, HEAD_SOURCES.get(message.head_source)
    )


def parse_signals(message: service_pb.Signals) -> Signals:
    """Parses the signals of a target. A number that is not set is None."""
    names = [field.name for field in dataclasses.fields(Signals)]
    return Signals(**{name: getattr(message, name) for name in names if message.HasField(name)})  # pyright: ignore[reportArgumentType]
