"""Markup of a source, carried over to its target.

document     MarkupDocument: reads a text with markup, and writes its target
options      what a client asks for and gets, and the limits
parsing/     texts with markup, cut into pieces
flows/       plain texts with trees of elements
placement/   the elements in the target
"""

from .document import MarkupDocument, parse_markup
from .options import (
    LinkedSegment,
    MarkedTarget,
    MarkupFormat,
    MarkupOptions,
    MarkupReport,
    MarkupSpan,
    Placement,
    Segment,
)

__all__ = [
    "LinkedSegment",
    "MarkedTarget",
    "MarkupDocument",
    "MarkupFormat",
    "MarkupOptions",
    "MarkupReport",
    "MarkupSpan",
    "Placement",
    "Segment",
    "parse_markup",
]
