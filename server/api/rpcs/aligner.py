"""Aligner: links pairs of texts, with rows that the engines compute, and carries markup over.

The requests to the engines of a pair are those of `PairReader`, and as many again for the other direction. A document
without a target has these requests for each segment. Align and AttributeMany share this module.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...alignment import (
    Link,
    LinkedSegment,
    Linker,
    MarkedTarget,
    MarkupDocument,
    PharaohError,
    Segment,
    Signals,
    WordedText,
    WordScores,
    guess_links,
    join_links,
    mean_signals,
    parse_markup,
    parse_pharaoh,
)
from ...errors import QUEUE_FULL, RequestError, invalid
from ...models import ModelInfo
from ...request import StopReason
from ...text import Token
from ..alignment_messages import AlignUsage, alignment_message
from ..converters import signals_message
from ..enums import STOP_REASONS, number_of
from ..validation import (
    MAX_SEGMENTS,
    AlignPlan,
    build_reverse_request,
    build_segment_request,
    check_links_model,
    find_head_source,
    fix_seed,
    make_linker,
    validate_align,
)
from .answer import AnswerStarter
from .pair_reader import OnStart, PairClient, PairReader, PairRows

# How many segments of a document run at the same time.
_MAX_RUNNING = 32

# The reason and the field of the error for a source without tokens.
_BLANK_SOURCE = ("EMPTY", "source.text")


class Aligner:
    """Answers AlignRequests. For one event loop."""

    def __init__(self, starter: AnswerStarter) -> None:
        self._starter = starter

    async def align(
        self,
        message: service_pb.AlignRequest,
        request_id: str,
        connection: Hashable,
        deadline: float | None,
        on_start: OnStart,
    ) -> service_pb.AlignResponse:
        """Links a pair. Raises RequestError with the path of the field.

        Args:
            message: The request. Its id has been checked.
            request_id: The id of the request.
            connection: The client's connection.
            deadline: When the links are not wanted any more, by `time.monotonic`; None: no deadline.
            on_start: Is called for each request that the engine gets.
        """
        usage = AlignUsage(time.monotonic())
        loaded = self._starter.find(message.model)
        client = PairClient(request_id, connection, deadline, on_start)
        with await self._starter.reserve(loaded, connection):  # before any work is done for the request
            plan = validate_align(message)
            num_bytes = len(plan.source_text) + len(plan.target_text or "")
            document = None
            if plan.markup is not None:
                document = await self._starter.run(num_bytes, parse_markup, plan.source_text, plan.markup)
        segments = _list_segments(plan, document)
        if plan.links is not None:
            pairs = [await self._starter.run(num_bytes, _link_by_client, plan, segments[0])]
            model, head_source, signals, stop_reason = "", service_pb.HEAD_SOURCE_UNSPECIFIED, None, "given"
        else:
            reader = PairReader(self._starter, message, client, usage)
            run = _PairRun(self._starter, message, plan, reader)
            pairs = await run.link_all(segments)
            model, head_source = loaded.name, find_head_source(message, loaded)
            signals, stop_reason = run.find_signals(), run.find_stop_reason()
        num_bytes += sum(len(pair.target_text) for pair in pairs)
        target = await self._starter.run(num_bytes, _place, document, pairs)
        source_text = plan.source_text if document is None else document.source_text
        response = await self._starter.run(
            num_bytes, alignment_message, request_id, model, head_source, plan, source_text, target, usage
        )
        response.stop_reason = number_of(STOP_REASONS, stop_reason)
        if signals is not None:
            response.signals.CopyFrom(signals_message(signals))
        return response


class _ScoredPair(NamedTuple):
    """The units of a source and of its target, and the scores of all pairs of units."""

    source: WordedText
    target: WordedText
    scores: WordScores


class _PairRun:
    """Links the segments of one request."""

    def __init__(
        self,
        starter: AnswerStarter,
        message: service_pb.AlignRequest,
        plan: AlignPlan,
        reader: PairReader,
    ) -> None:
        """Raises RequestError where a model of the request cannot link."""
        self._starter = starter
        self._message = message
        self._plan = plan
        self._reader = reader
        self._signals: list[tuple[Signals, int]] = []  # of each segment, and its number of target tokens
        self._stop_reasons: dict[int, StopReason] = {}  # of each segment that the model has read
        self._loaded, self._linker = self._find_linker(message.model, "model")
        self._reverse: ModelInfo | None = None
        self._reverse_linker: Linker | None = None
        if plan.reverse_model:
            self._reverse, self._reverse_linker = self._find_linker(plan.reverse_model, "link_options.reverse_model")

    def _find_linker(self, name: str, field: str) -> tuple[ModelInfo, Linker]:
        loaded = self._starter.find(name, field)
        check_links_model(loaded, field)
        return loaded, make_linker(self._message.link_options, loaded)

    async def link_all(self, segments: Sequence[Segment]) -> list[LinkedSegment]:
        """Links all segments, several at the same time. Where one fails, the others end. Raises RequestError.

        Where the queue of the model is full, fewer segments run at the same time.
        """
        if len(segments) == 1:
            return [await self._link(segments[0], 0)]
        fix_seed(self._message)
        linked: dict[int, LinkedSegment] = {}
        waiting = deque(enumerate(segments))
        num_workers = min(len(segments), _MAX_RUNNING)

        async def work() -> None:
            nonlocal num_workers
            while waiting:
                number, segment = waiting.popleft()
                try:
                    linked[number] = await self._link(segment, number)
                except RequestError as error:
                    if error.reason != QUEUE_FULL or num_workers == 1:
                        raise
                    waiting.appendleft((number, segment))  # for another worker
                    break
            num_workers -= 1

        tasks = [asyncio.create_task(work()) for _ in range(num_workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return [linked[number] for number in range(len(segments))]

    def find_signals(self) -> Signals | None:
        """Returns the means of the signals of all segments; None if the request does not ask for them."""
        return mean_signals(self._signals) if self._message.signals else None

    def find_stop_reason(self) -> StopReason:
        """Returns why the target ends: "length" if the target of any segment ends so, or else as the last one."""
        reasons = self._stop_reasons
        if "length" in reasons.values():
            return "length"
        return reasons[max(reasons)] if reasons else "given"

    async def _link(self, segment: Segment, number: int) -> LinkedSegment:
        plan = self._plan
        if plan.markup is not None and not segment.text.strip():  # nothing but markup
            return LinkedSegment(plan.target_text or "", [], [], [])
        request = build_segment_request(self._message, self._loaded, segment.text, plan.target_text)
        try:
            forward = await self._reader.read(request, self._linker, f"{number}", is_reverse=False)
        except RequestError as error:
            if plan.markup is None or plan.target_text is None or (error.reason, error.field) != _BLANK_SOURCE:
                raise
            return LinkedSegment(plan.target_text, [], [], [])  # the model has no tokens for what stands there
        self._stop_reasons[number] = forward.stop_reason
        if forward.signals is not None:
            self._signals.append((forward.signals, len(forward.target)))
        target_text = forward.target_text
        num_bytes = len(segment.text) + len(target_text)
        scored = await self._starter.run(num_bytes, self._score, forward)
        del forward  # its rows and states may be large, and the other direction may wait
        backward: PairRows | None = None
        if self._reverse is not None and target_text.strip():
            request = build_reverse_request(self._message, self._reverse, segment.text, target_text)
            assert self._reverse_linker is not None
            backward = await self._reader.read(request, self._reverse_linker, f"{number} reverse", is_reverse=True)
        return await self._starter.run(num_bytes, self._link_words, scored, backward)

    def _score(self, forward: PairRows) -> _ScoredPair:
        """Scores the units of a segment, for any thread."""
        source = _find_units(forward.source.text, forward.source.tokens, self._plan)
        target = _find_units(forward.target_text, forward.target, self._plan)
        states = forward.compare_states(self._linker, source, target)
        return _ScoredPair(source, target, self._linker.score(forward.rows, source, target, states))

    def _link_words(self, scored: _ScoredPair, backward: PairRows | None) -> LinkedSegment:
        """Links the units of a segment, for any thread. `backward` is from the model of the other direction."""
        plan = self._plan
        source, target, scores = scored
        links = self._linker.decide(scores)
        if backward is not None and self._reverse_linker is not None:
            # The same texts, with the tokens of the other model.
            back_source = WordedText(backward.source.text, backward.source.tokens, target.words)
            back_target = WordedText(backward.target_text, backward.target, source.words)
            states = backward.compare_states(self._reverse_linker, back_source, back_target)
            found = self._reverse_linker.link(backward.rows, back_source, back_target, states)
            links = join_links(links, [Link(t, s, score) for s, t, score in found], plan.symmetrization)
        links = [link for link in links if link.score >= plan.min_score]
        guesses = [] if plan.markup is None else guess_links(scores, links, plan.min_score)
        return LinkedSegment(target.text, source.words, target.words, links, guesses)


# ---- work on texts, for any thread ----------------------------------------------------------------------------------


def _list_segments(plan: AlignPlan, document: MarkupDocument | None) -> list[Segment]:
    if document is None:
        return [Segment(plan.source_text, 0, len(plan.source_text))]
    if len(document.segments) > MAX_SEGMENTS:
        problem = f"has {len(document.segments):,} segments; at most {MAX_SEGMENTS:,} are translated"
        raise invalid("source.text", "TOO_MANY_SEGMENTS", problem)
    return document.segments


def _find_units(text: str, tokens: Sequence[Token], plan: AlignPlan) -> WordedText:
    """Finds what is linked: words, or tokens that cover characters."""
    if plan.links_tokens:
        return WordedText(text, tokens, [(token.begin, token.end) for token in tokens if token.begin < token.end])
    return WordedText.of_text(text, tokens, is_pretokenized=plan.is_pretokenized)


def _link_by_client(plan: AlignPlan, segment: Segment) -> LinkedSegment:
    """Takes the links that a client has brought along. Raises RequestError."""
    assert plan.target_text is not None
    source = _find_units(segment.text, (), plan)
    target = _find_units(plan.target_text, (), plan)
    try:
        links = parse_pharaoh(plan.links or "", len(source.words), len(target.words))
    except PharaohError as error:
        raise invalid("links", "MALFORMED", str(error)) from error
    links = [link for link in links if link.score >= plan.min_score]
    return LinkedSegment(plan.target_text, source.words, target.words, links)


def _place(document: MarkupDocument | None, pairs: Sequence[LinkedSegment]) -> MarkedTarget:
    """Carries the markup over. Without markup, the target stays as it is."""
    if document is not None:
        return document.place(pairs)
    pair = pairs[0]
    words = list(pair.source_words), list(pair.target_words)
    return MarkedTarget(pair.target_text, pair.target_text, [], [], *words, list(pair.links))
