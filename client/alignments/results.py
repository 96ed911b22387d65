"""What an `align` call answers: words, links, and markup in the target. Plain data."""

# pandas is optional.
# pyright: reportMissingImports=false, reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import SidelightError
from ..offset_units import Span
from ..parameters import OffsetUnit
from ..results import HeadSource, Link, Signals, StopReason, Usage
from .parameters import MarkupSpan

if TYPE_CHECKING:
    import pandas as pd

Placement = Literal["links", "neighbours", "empty", "copied", "structure"]


@dataclass(frozen=True)
class MarkupReport:
    """What became of an element or a placeholder of the source.

    Attributes:
        markup: The start tag, or the placeholder, as it stands in the source.
        source: The part of `Alignment.source_text` that it covers: (begin, end).
        target: The part of `Alignment.target_text` that it covers.
        placement: What the place in the target comes from: the links of its words, the links of the words beside it; a
            placeholder that the model copied; the structure of the document. "empty": none of its words came over.
        score: How sure the place is, from 0 to 1.
    """

    markup: str
    source: tuple[int, int]
    target: tuple[int, int]
    placement: Placement | None
    score: float


@dataclass(frozen=True)
class Alignment:
    """The links between a source and its target.

    Attributes:
        request_id: The id of the request.
        model: The name of the model; empty where the links were brought along.
        source_text: The source without its markup.
        target_text: The target without markup.
        source: The words of the source, or its tokens.
        target: The words of the target, or its tokens.
        links: The links, in the order of the target.
        pharaoh: The links as "source-target" pairs of word numbers from 0.
        marked_target_text: The target with the markup of the source. Without markup: the target.
        report: One report for each element and placeholder of the source, in the order of the source.
        spans: With the markup format "spans": the spans at their places in the target.
        signals: Numbers that judge the target as a whole. None unless asked for.
        head_source: Where the heads come from; None where the links were brought along.
        usage: The cost; None where no model ran.
        offset_unit: What offsets count.
        stop_reason: Why the target ends. Of a source in several segments: "length" where the target of any segment ends
            so, or else the reason of the last segment. None: the server is older and does not say it.
    """

    request_id: str
    model: str
    source_text: str
    target_text: str
    source: tuple[Span, ...]
    target: tuple[Span, ...]
    links: tuple[Link, ...]
    pharaoh: str
    marked_target_text: str
    report: tuple[MarkupReport, ...] = ()
    spans: tuple[MarkupSpan, ...] = ()
    signals: Signals | None = None
    head_source: HeadSource | None = None
    usage: Usage | None = None
    offset_unit: OffsetUnit = "code_point"
    stop_reason: StopReason | None = None

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with a line for each link: `source_index`, `source`, `target_index`, `target`, `score`.

        Raises:
            ImportError: pandas is not installed.
        """
        from ..notebook import frames

        return frames.alignment_frame(self)

    def _repr_html_(self) -> str:
        """What Jupyter shows: the picture that `save_picture` writes."""
        from ..notebook import html

        return html.alignment_html(self)


@dataclass(frozen=True, eq=False)
class ManyAlignment:
    """How one of many pairs has ended.

    Attributes:
        index: The number of the pair, from 0.
        alignment: The links; None if the pair has failed.
        error: Why the pair has failed; None if it has not.
    """

    index: int
    alignment: Alignment | None = None
    error: SidelightError | None = None

    def get(self) -> Alignment:
        """Returns the links. Raises the error of a pair that has failed."""
        if self.error is not None:
            raise self.error
        assert self.alignment is not None
        return self.alignment
