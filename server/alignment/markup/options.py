"""What a client asks for, what it gets, and the limits of both: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...text import Span
from ..links import Link

MarkupFormat = Literal["spans", "html", "xml", "xliff", "placeholders"]

Placement = Literal["links", "neighbours", "empty", "copied", "structure"]
"""How a place in the target was found. The contract's enum Placement explains the words."""

# The most tags, comments, placeholders and spans of a text. The time to place them grows with their number.
MAX_TAGS = 20_000
# The most characters of a text with markup.
MAX_CHARACTERS = 2_000_000
# The most bytes of a client's pattern of placeholders.
MAX_PATTERN_BYTES = 1_000


@dataclass(frozen=True)
class MarkupSpan:
    """A marked span of a text. `begin` and `end` count code points. Where both are equal, the span is a point."""

    id: str
    begin: int
    end: int


@dataclass(frozen=True)
class MarkupOptions:
    """What the markup of a source is, and what is done with the markup.

    Attributes:
        format: What the source is.
        spans: The marked spans of the source. Only with the format "spans".
        is_strict: Whether malformed markup is refused. None: it is refused in XML and XLIFF, and kept in HTML.
        can_split: Whether an element is repeated where its words come apart in the target.
        has_placeholders: Whether placeholders in HTML, XML and XLIFF are kept. In plain text with placeholders they
            are always kept.
        placeholder_pattern: One more pattern of placeholders, in the syntax of RE2.
        splits_sentences: Whether each sentence is a segment of its own. Only without a target.
        has_target: Whether the client gives the target. Then the whole text is one segment, and the model sees
            placeholders as they stand in the source.
    """

    format: MarkupFormat = "spans"
    spans: Sequence[MarkupSpan] = ()
    is_strict: bool | None = None
    can_split: bool = False
    has_placeholders: bool = False
    placeholder_pattern: str = ""
    splits_sentences: bool = False
    has_target: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of a text that is translated by itself.

    Attributes:
        text: What the model reads. Stand-ins take the place of placeholders and of contents that are not translated.
        begin: Where the segment begins in the source text, in code points.
        end: Where the segment ends in the source text.
    """

    text: str
    begin: int
    end: int


@dataclass(frozen=True)
class LinkedSegment:
    """A segment with its target and the links between the words of both.

    Attributes:
        target_text: The target, without markup: what the model wrote, or the client gave.
        source_words: The words of `Segment.text`, ascending. Offsets count in `Segment.text`.
        target_words: The words of `target_text`, ascending. Offsets count in `target_text`.
        links: Links between the numbers of both.
        guesses: Weak links of source words that have no link. They have a part in places only.
    """

    target_text: str
    source_words: Sequence[Span]
    target_words: Sequence[Span]
    links: Sequence[Link]
    guesses: Sequence[Link] = ()


@dataclass(frozen=True)
class MarkupReport:
    """What became of an element, a comment or a placeholder of the source.

    Attributes:
        markup: The start tag, the comment or the placeholder as it stands in the source.
        source: The part of the source text that it covers.
        target: The part of the target text that it covers. Of an element that is repeated: the first part.
        placement: How the place in the target was found.
        score: How sure the place is, from 0 to 1.
    """

    markup: str
    source: Span
    target: Span
    placement: Placement
    score: float


@dataclass(frozen=True)
class MarkedTarget:
    """The target of a text with markup.

    Attributes:
        text: The target with its markup.
        target_text: The target without markup. Offsets into the target count in this text.
        reports: One report for each element, comment and placeholder of the source, in the order of the source.
        spans: With the format "spans": the spans at their places in the target, in the order of the client.
        source_words: The source words of all segments, one after another. Offsets count in the source text.
        target_words: The target words of all segments, one after another. Offsets count in `target_text`.
        links: The links of all segments. The numbers of words count through all segments.
    """

    text: str
    target_text: str
    reports: list[MarkupReport]
    spans: list[MarkupSpan]
    source_words: list[Span]
    target_words: list[Span]
    links: list[Link]
