"""Builds the Contrast message of a request."""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .errors import field_errors
from .parameters import Contrast
from .validation import check_fields


def build_contrast(contrast: Contrast) -> service_pb.Contrast:
    """Builds the Contrast message. Raises InvalidArgumentError."""
    check_fields(contrast, "contrast", {"target": "given"})
    message = service_pb.Contrast(subtract_attention=contrast.subtract_attention)
    for name, text in (("source", contrast.source), ("prefix", contrast.prefix), ("given", contrast.target)):
        if text is not None:
            getattr(message, name).CopyFrom(converters.build_text(text, f"contrast.{name}"))
    for index, (target, other) in enumerate(contrast.alignments):
        with field_errors(f"contrast.alignments[{index}]"):
            message.alignments.add(target=target, contrast=other)
    for name in ("kl_top_p", "kl_top_k"):
        if (value := getattr(contrast, name)) is not None:
            with field_errors(f"contrast.{name}"):
                setattr(message, name, value)
    return message
