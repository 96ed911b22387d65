"""Word links between a source and its target, and what is done with links.

links     Link: a source word, a target word and a score
markup/   markup of the source, carried over to the target by the links
"""

from .links import Link
from .markup import (
    LinkedSegment,
    MarkedTarget,
    MarkupDocument,
    MarkupFormat,
    MarkupOptions,
    MarkupReport,
    MarkupSpan,
    Placement,
    Segment,
    parse_markup,
)

__all__ = [
    "Link",
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
