"""Word links: what a client asks for, and what it gets. Plain data.

parameters    Markup, MarkupSpan, LinkOptions
results       Alignment, MarkupReport, ManyAlignment
"""

from .parameters import (
    LinkFeature,
    LinkMethod,
    LinkOptions,
    LinkUnit,
    Markup,
    MarkupFormat,
    MarkupSpan,
    Pair,
    Symmetrization,
)
from .results import Alignment, ManyAlignment, MarkupReport, Placement

__all__ = [
    "Alignment",
    "LinkFeature",
    "LinkMethod",
    "LinkOptions",
    "LinkUnit",
    "ManyAlignment",
    "Markup",
    "MarkupFormat",
    "MarkupReport",
    "MarkupSpan",
    "Pair",
    "Placement",
    "Symmetrization",
]
