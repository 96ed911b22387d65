"""Documents: texts with markup that are read, translated segment by segment, and written again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ...errors import invalid
from ...text import Span
from ..links import Link
from .flows import SEPARATOR, DocumentBuilder, Flow, Kept, Mark, Node, divide_flow
from .options import (
    MAX_CHARACTERS,
    MAX_TAGS,
    LinkedSegment,
    MarkedTarget,
    MarkupOptions,
    MarkupReport,
    MarkupSpan,
    Segment,
)
from .parsing import Piece, check_matches, match_tags, parse_html, parse_xml
from .placement import FlowPlacer, LinkedFlow, Place, TargetWriter, divide_target, join_sentences, make_escapes


class MarkupDocument:
    """A text with markup.

    Attributes:
        source_text: The text without markup. A line break stands between two blocks.
        segments: The parts that are translated by themselves. With a given target: one, the whole text. A text without
            words has no segments, unless the target is given.
    """

    def __init__(
        self, options: MarkupOptions, parts: list[Flow | Kept], marks: list[Mark], escapes: dict[int, str]
    ) -> None:
        self._options = options
        self._parts = parts
        self._marks = marks
        self._escapes = escapes
        self._flows = [part for part in parts if isinstance(part, Flow)]
        self.source_text = SEPARATOR.join(flow.text for flow in self._flows)
        if options.has_target:
            self.segments = [Segment(self.source_text, 0, len(self.source_text))]
        else:
            self.segments = [
                Segment(sentence.text, flow.begin + sentence.begin, flow.begin + sentence.end)
                for flow in self._flows
                for sentence in flow.sentences
                if sentence.text
            ]

    def place(self, pairs: Sequence[LinkedSegment]) -> MarkedTarget:
        """Writes the targets of all segments with the markup of the source.

        `pairs` has one pair for each segment, in the same order.
        """
        if self._options.has_target:
            divided = divide_target(self._flows, pairs[0])
            ends = [span for _, span in divided]
            gaps = [pairs[0].target_text[left[1] : right[0]] for left, right in pairwise(ends)]
            return self._write([linked for linked, _ in divided], gaps)
        iterator = iter(pairs)
        linked_flows = [join_sentences(flow, iterator) for flow in self._flows]
        return self._write(linked_flows, [SEPARATOR] * len(linked_flows))

    def _write(self, linked_flows: Sequence[LinkedFlow], gaps: Sequence[str]) -> MarkedTarget:
        writer = TargetWriter(self._escapes, len(self._marks), keeps_points=not self._options.has_target)
        places: dict[int, Place] = {}
        target = MarkedTarget("", "", [], [], [], [], [])
        spans: list[MarkupSpan] = []
        number = 0
        for part in self._parts:
            if isinstance(part, Kept):
                if not self._is_given(part, is_first=number == 0, linked=linked_flows):
                    writer.keep(part)
                continue
            if number:
                writer.separate(gaps[number - 1])
            linked = linked_flows[number]
            placer = FlowPlacer(part, linked, self._options.can_split)
            if self._options.format == "spans":
                placed = placer.place_each()
                spans = [
                    MarkupSpan(span.id, item.begin, item.end)
                    for span, item in zip(self._options.spans, placed, strict=True)
                ]
                placer.root.children = []
            else:
                placer.place()
                places.update(placer.places)
            words = writer.write(part.text, linked, placer.root)
            _add_words(target, part, linked, words)
            number += 1
        text, target_text, mark_spans = writer.finish()
        reports = [self._report(number, span, places) for number, span in enumerate(mark_spans)]
        return MarkedTarget(text, target_text, reports, spans, target.source_words, target.target_words, target.links)

    def _is_given(self, kept: Kept, is_first: bool, linked: Sequence[LinkedFlow]) -> bool:
        """Whether white space at an end of the source is left to the target, which the client gives with its own."""
        if not self._options.has_target or len(linked) != 1 or not kept.raw.isspace():
            return False
        target = linked[0].target_text
        has_own = (target[:1] if is_first else target[-1:]).isspace()
        return has_own or self._options.format in ("xliff", "placeholders")

    def _report(self, number: int, span: Span, places: dict[int, Place]) -> MarkupReport:
        mark = self._marks[number]
        place = places.get(number, Place("structure", 1.0))
        return MarkupReport(mark.markup, (mark.begin, mark.end), span, place.placement, min(place.score, 1.0))


def parse_markup(text: str, options: MarkupOptions) -> MarkupDocument:
    """Reads a text with markup.

    Raises RequestError for malformed markup that the options refuse, for a span outside of the text, and for a text
    that is too long or has too many tags.
    """
    if len(text) > MAX_CHARACTERS:
        message = f"has {len(text):,} characters; with markup, at most {MAX_CHARACTERS:,} are allowed"
        raise invalid("source.text", "TEXT_TOO_LONG", message)
    if options.format == "spans":
        flow = _make_span_flow(text, options)
        return MarkupDocument(options, [flow], [], {})
    pieces = _parse(text, options)
    builder = DocumentBuilder(options)
    builder.build(pieces)
    return MarkupDocument(options, builder.parts, builder.marks, make_escapes(pieces, options.format))


def _parse(text: str, options: MarkupOptions) -> list[Piece]:
    if options.format == "placeholders":
        return [Piece("text", text, text)] if text else []
    if options.format == "html":
        pieces = parse_html(text, bool(options.is_strict))
        if options.is_strict:
            match_tags(pieces)
            check_matches(pieces, text)
        return pieces
    return parse_xml(text, options.is_strict is not False)


def _make_span_flow(text: str, options: MarkupOptions) -> Flow:
    if len(options.spans) > MAX_TAGS:
        raise invalid("markup.spans", "TOO_MANY_SPANS", f"has {len(options.spans):,} spans; at most {MAX_TAGS:,}")
    nodes: list[Node] = []
    for number, span in enumerate(options.spans):
        if not 0 <= span.begin <= span.end <= len(text):
            raise invalid(f"markup.spans[{number}]", "INVALID_SPAN", "does not lie in source.text")
        nodes.append(Node(-1, span.begin, span.end))
    flow = Flow(text, Node(-1, 0, len(text), children=nodes))
    flow.sentences = divide_flow(flow, options)
    return flow


def _add_words(target: MarkedTarget, flow: Flow, linked: LinkedFlow, words: Sequence[Span]) -> None:
    """Adds the words and the links of a flow."""
    num_source, num_target = len(target.source_words), len(target.target_words)
    target.source_words.extend((begin + flow.begin, end + flow.begin) for begin, end in linked.source_words)
    target.target_words.extend(words)
    target.links.extend(Link(link.source + num_source, link.target + num_target, link.score) for link in linked.links)
