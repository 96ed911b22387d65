"""The AttributeMany RPC: many texts on one stream, which end each for itself.

The events of all texts go in one message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Sequence

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...engine import OutputQueue
from ...errors import RequestError, cancelled, invalid, report_fault
from ...request import Finished
from .. import status
from ..call import Call
from ..parsing import parse
from ..validation import request_id_of
from .aligner import Aligner
from .answer import MESSAGE_BYTES, Answer, AnswerStarter, group_outputs
from .attribute import deadline_of
from .many_alignments import ManyAlignments
from .text_stream import TextStream

log = logging.getLogger(__name__)

# The bytes of open requests to align from which on no further request is read. An answer waits as a whole, and is some
# times as large as its request.
_MAX_ALIGN_BYTES = 1024**2

# An error repeats this many characters of the id of its text: all of a valid id.
_MAX_ID_CHARACTERS = 128


class AttributeManyMethod:
    """The AttributeMany RPC over the engines of all models. For one event loop."""

    def __init__(self, starter: AnswerStarter, aligner: Aligner) -> None:
        self._starter = starter
        self._aligner = aligner

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        await _ManyStream(call, self._starter, self._aligner).run()


class _ManyStream(TextStream):
    """One stream with its texts."""

    def __init__(self, call: Call, starter: AnswerStarter, aligner: Aligner) -> None:
        super().__init__(call)
        self._starter = starter
        self._answers: dict[str, Answer] = {}  # the running texts by their ids
        self._ids: dict[OutputQueue, str] = {}  # of the running texts
        self._errors: deque[tuple[str, RequestError]] = deque()  # of texts that have failed, with their ids
        self._alignments = ManyAlignments(call, aligner, self._ready.wake)

    def _close(self) -> Sequence[asyncio.Task[None]]:
        for answer in self._answers.values():
            answer.queue.cancel()
        return self._alignments.end()

    # ---- requests ---------------------------------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return super()._is_full or self._alignments.num_bytes >= _MAX_ALIGN_BYTES

    async def _answer(self, data: bytes) -> None:
        await self._answer_request(parse(service_pb.AttributeManyRequest, data), len(data))

    async def _answer_request(self, message: service_pb.AttributeManyRequest, num_bytes: int) -> None:
        event = message.WhichOneof("event")
        text = message.align if event == "align" else message.attribute
        request_id = text.request_id[:_MAX_ID_CHARACTERS]
        try:
            if event in ("attribute", "align"):
                await self._start(message, text, num_bytes)
            elif event is None:
                raise invalid("event", "REQUIRED", "is unset or not known: it must be attribute, align or cancel")
            elif not message.cancel:
                raise invalid("cancel", "REQUIRED", "must be the request_id of a text")
            else:
                self._cancel(message.cancel)
        except RequestError as error:
            self._fail(request_id, error)
        except Exception as fault:
            self._fail(request_id, report_fault(log, request_id, fault))

    async def _start(
        self,
        message: service_pb.AttributeManyRequest,
        text: service_pb.AttributeRequest | service_pb.AlignRequest,
        num_bytes: int,
    ) -> None:
        """Starts a text. Raises RequestError with the path in the message."""
        deadline = deadline_of(self._call)
        if message.HasField("timeout"):
            seconds = message.timeout.seconds + message.timeout.nanos / 1e9
            if seconds <= 0:
                raise invalid("timeout", "OUT_OF_RANGE", "must be above 0")
            end = time.monotonic() + seconds
            deadline = end if deadline is None else min(deadline, end)
        try:
            if not text.request_id:
                raise invalid("request_id", "REQUIRED", "is needed on a stream of many texts")
            request_id = request_id_of(text)
            if request_id in self._answers or request_id in self._alignments:
                raise invalid("request_id", "DUPLICATE", "is the id of a text that runs on this stream")
            if isinstance(text, service_pb.AlignRequest):
                await self._alignments.start(text, num_bytes, request_id, deadline)
                self._num_open += 1
                return
            answer = await self._start_answer(text, num_bytes, request_id, deadline)
        except RequestError as error:
            raise _with_path(error, "attribute" if isinstance(text, service_pb.AttributeRequest) else "align") from None
        self._num_open += 1
        self._answers[request_id] = answer
        self._ids[answer.queue] = request_id
        self._call.requests[request_id] = answer.state

    async def _start_answer(
        self, text: service_pb.AttributeRequest, num_bytes: int, request_id: str, deadline: float | None
    ) -> Answer:
        await self._call.begin_request()
        try:
            return await self._starter.start(text, num_bytes, request_id, self._call.client, deadline, self._ready)
        except BaseException:
            self._call.end_request()
            raise

    def _cancel(self, request_id: str) -> int:
        """Cancels the text of an id. Returns how many there were."""
        if request_id in self._answers:
            self._answers[request_id].queue.cancel()
            self._forget(request_id)
        elif not self._alignments.cancel(request_id):
            return 0
        self._num_open -= 1
        self._fail(request_id, cancelled())
        return 1

    def _fail(self, request_id: str, error: RequestError) -> None:
        self._num_open += 1
        self._errors.append((request_id, error))
        self._ready.wake()

    # ---- events -----------------------------------------------------------------------------------------------------

    async def _send_events(self, queues: deque[OutputQueue]) -> None:
        """Sends the failures, and the outputs that some queues have."""
        while queues or self._errors or self._alignments.has_ended:
            message = _Message()
            self._add_errors(message)
            self._add_alignments(message)
            self._add_outputs(message, queues)
            if message.num_events:
                await self._call.write(message.build())
                for queue in message.queues:
                    queue.release_sent()
                self._num_open -= message.num_ends
                self._has_room.set()

    def _add_errors(self, message: _Message) -> None:
        while self._errors and message.has_room:
            request_id, error = self._errors.popleft()
            message.add_error(request_id, error)

    def _add_alignments(self, message: _Message) -> None:
        while self._alignments.has_ended and message.has_room:
            request_id, result = self._alignments.pop()
            if isinstance(result, RequestError):
                message.add_error(request_id, _with_path(result, "align"))
            else:
                message.add_alignment(result)

    def _add_outputs(self, message: _Message, queues: deque[OutputQueue]) -> None:
        """Adds what the texts of some queues have, as far as the message has room. Leaves the other queues."""
        while queues and message.has_room:
            queue = queues.popleft()
            request_id = self._ids.get(queue)
            if request_id is None:  # the text has ended
                continue
            try:
                is_over = message.add_outputs(request_id, self._answers[request_id])
            except RequestError as error:
                message.add_error(request_id, error)
                is_over = True
            if is_over:
                self._forget(request_id)
            elif queue.has_more:
                queues.append(queue)

    def _forget(self, request_id: str) -> None:
        """Forgets a text whose last event is about to be sent: another text may have its id from now on."""
        del self._ids[self._answers[request_id].queue]
        del self._answers[request_id]
        del self._call.requests[request_id]
        self._call.end_request()


class _Message:
    """Events of several texts, which are sent together.

    Attributes:
        num_events: How many events there are.
        num_ends: How many of them are the last of their texts.
        queues: The queues whose outputs are in the message.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self.num_ends = 0
        self.queues: list[OutputQueue] = []
        self._message = service_pb.AttributeManyResponse()
        self._responses = self._message.batch.responses
        self._num_bytes = 0

    @property
    def has_room(self) -> bool:
        """Whether more events may be added."""
        return self._num_bytes < MESSAGE_BYTES

    def add_error(self, request_id: str, error: RequestError) -> None:
        """Adds the failure of a text: its last event."""
        response = self._responses.add(request_id=request_id)
        status.fill_error(response.error, error)
        self._num_bytes += response.ByteSize()
        self.num_events += 1
        self.num_ends += 1

    def add_alignment(self, alignment: service_pb.AlignResponse) -> None:
        """Adds the links of a pair: its one event."""
        response = self._responses.add(request_id=alignment.request_id)
        response.alignment.CopyFrom(alignment)
        self._num_bytes += alignment.ByteSize()
        self.num_events += 1
        self.num_ends += 1

    def add_outputs(self, request_id: str, answer: Answer) -> bool:
        """Adds what a text has. Returns whether its last output is among them.

        Raises RequestError where the text has failed.
        """
        queue = answer.queue
        num_taken = queue.sending_bytes
        outputs = queue.take(MESSAGE_BYTES - self._num_bytes)
        if not outputs:
            return False
        for group in group_outputs(outputs):
            response = self._responses.add()
            response.request_id = request_id
            answer.fill(response.response, group)
            self.num_events += 1
        self._num_bytes += queue.sending_bytes - num_taken
        self.queues.append(queue)
        is_over = isinstance(outputs[-1], Finished)
        self.num_ends += is_over
        return is_over

    def build(self) -> service_pb.AttributeManyResponse:
        """Returns the message: a batch, or a single event."""
        return self._message if self.num_events > 1 else self._responses[0]


def _with_path(error: RequestError, path: str) -> RequestError:
    """Returns the error with the path of its field in the message of the stream."""
    return dataclasses.replace(error, field=f"{path}.{error.field}") if error.field else error
