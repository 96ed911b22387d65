"""The texts of one AttributeMany stream: which run, what has arrived of each, which results are ready.

What the synchronous and the asyncio stream share. Knows no connection: the streams send what this module gives them,
and hand in what they receive.
"""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from sidelight.v1 import attribution_service_pb2 as service_pb

from . import converters
from .alignments import Alignment, ManyAlignment, Pair
from .errors import (
    DeadlineExceededError,
    InternalError,
    ResourceExhaustedError,
    SidelightError,
    from_error_message,
    invalid_argument,
)
from .parameters import Source
from .parts import AnswerParts
from .request import (
    AlignOptions,
    AttributeOptions,
    build_align_request,
    build_attribute_request,
    build_resumption,
    validate_timeout,
)
from .results import Attribution, Step
from .validation import check_value

# How many texts run at the same time: as many as a server has slots by default.
DEFAULT_RUNNING = 32

# How far the texts that run may be ahead of the oldest text that runs, as a multiple of `max_running`: the results in
# between wait for it.
_WINDOW = 8

# The size of a message that gRPC takes by default. A larger one would end the stream with all its texts.
_MAX_MESSAGE_BYTES = 4 * 1024**2

S = TypeVar("S")
R = TypeVar("R")

ManySource = Source | tuple[Source, AttributeOptions]
"""A source, or a source with options of its own."""

OnStep = Callable[[int, Step], None]
"""Is called with the index of a source, and a step of its answer."""


@dataclass(frozen=True, eq=False)
class ManyResult:
    """How one of many texts has ended.

    Attributes:
        index: The number of the source, from 0.
        attribution: The whole result; None if the text has failed.
        error: Why the text has failed; None if it has not.
    """

    index: int
    attribution: Attribution | None = None
    error: SidelightError | None = None

    def get(self) -> Attribution:
        """Returns the whole result. Raises the error of a text that has failed."""
        if self.error is not None:
            raise self.error
        assert self.attribution is not None
        return self.attribution


class RunningText(ABC, Generic[R]):
    """A text, or a pair of texts, that runs.

    Attributes:
        index: Its number on the stream.
        break_error: Why the server has given it up, so that a new call resumes it; None if the server has not.
    """

    def __init__(self, index: int, timeout: float | None) -> None:
        self.index = index
        self.break_error: SidelightError | None = None
        self._end = None if timeout is None else time.monotonic() + timeout

    def message(self) -> service_pb.AttributeManyRequest | None:
        """Returns the request for all that has not arrived; None if there is no time left."""
        self.break_error = None
        message = self._next_request()
        if self._end is not None:
            seconds = self._end - time.monotonic()
            if seconds <= 0:
                return None
            message.timeout.CopyFrom(_duration(seconds))
        return message

    @abstractmethod
    def _next_request(self) -> service_pb.AttributeManyRequest:
        """Returns the request for all that has not arrived."""

    @abstractmethod
    def receive(self, event: service_pb.AttributeManyResponse) -> bool:
        """Takes an event that is no error. Returns whether it is the last one."""

    @abstractmethod
    def result(self, error: SidelightError | None) -> R:
        """Returns how the text has ended."""


class ManyState(ABC, Generic[S, R]):
    """The texts of one stream. For one event loop, or for two threads: one adds texts, and one receives.

    `S` is what the caller gives for a text, and `R` its result.

    Attributes:
        resumption: How often the stream may be begun again.
    """

    path = ""
    """The path of the request of a text in its message."""

    def __init__(self, *, max_running: int, ordered: bool, request_id: str, max_tries: int) -> None:
        """Raises InvalidArgumentError where an option is wrong. `max_tries` is for `Resumption`."""
        check_value(max_running, int, "max_running")
        check_value(ordered, bool, "ordered")
        if max_running < 1:
            raise invalid_argument("max_running", "must be at least 1")
        self.resumption = build_resumption({"resume": max_tries})
        self._max_running = max_running
        self._ordered = ordered
        self._id_prefix = request_id or f"{uuid.uuid4().hex[:16]}-"
        self._running: dict[str, RunningText[R]] = {}
        self._results: dict[int, R] = {}  # in the order in which the texts have ended
        self._num_added = 0
        self._num_returned = 0

    @abstractmethod
    def _make_text(self, index: int, source: S) -> tuple[str, RunningText[R]]:
        """Makes a text that runs, with its request id. Raises SidelightError."""

    @abstractmethod
    def _fail(self, index: int, error: SidelightError) -> R:
        """Returns the result of a text that was not sent."""

    @property
    def num_running(self) -> int:
        """How many texts run."""
        return len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether one more text may run."""
        num_waiting = self._num_added - self._num_returned
        return len(self._running) < self._max_running and num_waiting < self._max_running * _WINDOW

    @property
    def break_error(self) -> SidelightError | None:
        """Why the server has given up all texts that run, so that a new call must resume them; None if it has not."""
        errors = [text.break_error for text in list(self._running.values())]
        return errors[0] if errors and None not in errors else None

    # ---- what is sent -----------------------------------------------------------------------------------------------

    def add(self, source: S) -> service_pb.AttributeManyRequest | None:
        """Adds a text. Returns the message to send; None if the text has failed already."""
        index = self._num_added
        self._num_added += 1
        try:
            request_id, text = self._make_text(index, source)
            if request_id in self._running:
                raise invalid_argument("request_id", "is the id of another text that runs")
            message = text.message()
            if message is not None and message.ByteSize() > _MAX_MESSAGE_BYTES:
                size = f"more than {_MAX_MESSAGE_BYTES >> 20} MiB, the most that a server takes"
                raise ResourceExhaustedError(f"the request has {size}", grpc.StatusCode.RESOURCE_EXHAUSTED)
        except SidelightError as error:
            self._results[index] = self._fail(index, error)
            return None
        self._running[request_id] = text
        if message is None:
            self._expire(request_id)
        return message

    def next_messages(self) -> list[service_pb.AttributeManyRequest]:
        """Returns the messages that begin a new stream after a break: for all texts that run."""
        messages: list[service_pb.AttributeManyRequest] = []
        for request_id, text in list(self._running.items()):
            if (message := text.message()) is not None:
                messages.append(message)
            else:
                self._expire(request_id)
        return messages

    def cancel_message(self, index: int) -> service_pb.AttributeManyRequest | None:
        """Returns the message that cancels a text; None if the text does not run."""
        ids = (request_id for request_id, text in list(self._running.items()) if text.index == index)
        request_id = next(ids, None)
        return None if request_id is None else service_pb.AttributeManyRequest(cancel=request_id)

    def _expire(self, request_id: str) -> None:
        self._end(request_id, DeadlineExceededError("the timeout has passed", grpc.StatusCode.DEADLINE_EXCEEDED))

    # ---- what is received -------------------------------------------------------------------------------------------

    def receive(self, message: service_pb.AttributeManyResponse) -> None:
        """Takes a message of the server. Raises InternalError if it does not fit the contract."""
        self.resumption.note_progress()
        for event in message.batch.responses if message.HasField("batch") else (message,):
            self._receive_event(event)

    def _receive_event(self, event: service_pb.AttributeManyResponse) -> None:
        text = self._running.get(event.request_id)
        if text is None:
            message = f"the server's answer does not fit the contract: no text {event.request_id[:100]!r} runs"
            raise InternalError(message, grpc.StatusCode.INTERNAL)
        if event.HasField("error"):
            error = from_error_message(event.error, event.request_id, self.path)
            if self.resumption.covers(error):
                text.break_error = error
            else:
                self._end(event.request_id, error)
            return
        if text.receive(event):
            self._end(event.request_id, None)

    def _end(self, request_id: str, error: SidelightError | None) -> None:
        text = self._running.pop(request_id)
        self._results[text.index] = text.result(error)

    def pop_result(self) -> R | None:
        """Returns the next result; None if it is not there yet."""
        index = self._num_returned if self._ordered else next(iter(self._results), -1)
        result = self._results.pop(index, None)
        if result is not None:
            self._num_returned += 1
        return result


class _Attribution(RunningText[ManyResult]):
    """A text of `attribute_many`."""

    def __init__(
        self, index: int, request: service_pb.AttributeRequest, timeout: float | None, on_step: OnStep | None
    ) -> None:
        super().__init__(index, timeout)
        self._parts = AnswerParts(request)
        self._on_step = on_step
        self._error: SidelightError | None = None  # of an answer that does not fit the contract

    def _next_request(self) -> service_pb.AttributeManyRequest:
        return service_pb.AttributeManyRequest(attribute=self._parts.next_request())

    def receive(self, event: service_pb.AttributeManyResponse) -> bool:
        try:
            if self._error is None:
                self._parts.add(event.response)
        except InternalError as error:
            self._error = error
        while self._on_step is not None and (step := self._parts.pop_step()) is not None:
            self._on_step(self.index, step)
        return event.response.HasField("finished")

    def result(self, error: SidelightError | None) -> ManyResult:
        attribution = None
        error = error or self._error
        try:
            if error is None:
                attribution = self._parts.collect()
        except SidelightError as collect_error:
            error = collect_error
        return ManyResult(self.index, attribution, error)


class AttributionManyState(ManyState[ManySource, ManyResult]):
    """The texts of `attribute_many`."""

    path = "attribute."

    def __init__(self, options: AttributeOptions, *, max_running: int, ordered: bool, on_step: OnStep | None) -> None:
        """Raises InvalidArgumentError where an option is wrong."""
        build_attribute_request("", options)
        request_id, max_tries = options.get("request_id", ""), options.get("resume", 0)
        super().__init__(max_running=max_running, ordered=ordered, request_id=request_id, max_tries=max_tries)
        self._options = options
        self._on_step = on_step

    def _make_text(self, index: int, source: ManySource) -> tuple[str, RunningText[ManyResult]]:
        options = self._options
        if _has_options(source):
            source, own = cast("tuple[Source, AttributeOptions]", source)
            options = cast("AttributeOptions", {**options, "request_id": "", **own})
        request = build_attribute_request(cast("Source", source), options)
        # With options of its own a text can have an id of its own.
        is_own = options is not self._options and bool(request.request_id)
        request.request_id = request.request_id if is_own else f"{self._id_prefix}{index}"
        timeout = validate_timeout(options.get("timeout"))
        return request.request_id, _Attribution(index, request, timeout, self._on_step)

    def _fail(self, index: int, error: SidelightError) -> ManyResult:
        return ManyResult(index, error=error)


class _Alignment(RunningText[ManyAlignment]):
    """A pair of `align_many`."""

    def __init__(self, index: int, request: service_pb.AlignRequest, timeout: float | None) -> None:
        super().__init__(index, timeout)
        self._request = request
        self._alignment: Alignment | None = None

    def _next_request(self) -> service_pb.AttributeManyRequest:
        return service_pb.AttributeManyRequest(align=self._request)

    def receive(self, event: service_pb.AttributeManyResponse) -> bool:
        if event.HasField("alignment"):
            self._alignment = converters.parse_alignment(event.alignment)
        return True

    def result(self, error: SidelightError | None) -> ManyAlignment:
        if error is None and self._alignment is None:
            message = "the server's answer does not fit the contract: a pair has an event without links"
            error = InternalError(message, grpc.StatusCode.INTERNAL)
        return ManyAlignment(self.index, self._alignment, error)


class AlignmentManyState(ManyState[Pair, ManyAlignment]):
    """The pairs of `align_many`."""

    path = "align."

    def __init__(self, options: AlignOptions, *, max_running: int, ordered: bool, resume: int) -> None:
        """Raises InvalidArgumentError where an option is wrong."""
        build_align_request("", "", options)
        check_value(resume, int, "resume")
        request_id = options.get("request_id", "")
        super().__init__(max_running=max_running, ordered=ordered, request_id=request_id, max_tries=resume)
        self._options = options

    def _make_text(self, index: int, source: Pair) -> tuple[str, RunningText[ManyAlignment]]:
        check_value(source, Pair, "pair")
        text, target, own = source if len(source) == 3 else (*source, cast("dict[str, Any]", {}))
        options = cast("AlignOptions", {**self._options, "request_id": "", **own})
        request = build_align_request(text, target, options)
        request.request_id = request.request_id or f"{self._id_prefix}{index}"
        return request.request_id, _Alignment(index, request, validate_timeout(options.get("timeout")))

    def _fail(self, index: int, error: SidelightError) -> ManyAlignment:
        return ManyAlignment(index, error=error)


def _has_options(source: ManySource) -> bool:
    """Whether a source is a tuple with options of its own. The messages of a chat may be a tuple of dicts, too."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    first, second = cast("tuple[object, object]", source)
    return isinstance(second, Mapping) and not isinstance(first, Mapping)


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(max(1, round(seconds * 1e9)))
    return message
