"""Triton's ModelStreamInfer: many requests on one stream, with a response for each step of each text.

A request that fails has a response with an error message, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.v1 import attribution_service_pb2 as service_pb

from ...engine import OutputQueue
from ...errors import RequestError, cancelled, report_fault
from ..call import Call
from ..parsing import parse
from ..rpcs import MESSAGE_BYTES, Answer, AnswerStarter, TextStream, deadline_of, group_outputs
from .inference_request import InferenceRequest, read_request
from .outputs import Part, TextOutputs
from .parameters import read_deadline
from .responses import make_response, make_stream_error, make_stream_response
from .starting import start_request

log = logging.getLogger(__name__)

# An error repeats this many characters of the id and of the model of its request: all of valid ones.
_MAX_NAME_CHARACTERS = 128


class ModelStreamInferMethod:
    """ModelStreamInfer over the engines of all models. For one event loop."""

    def __init__(self, starter: AnswerStarter) -> None:
        self._starter = starter

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        await _InferStream(call, self._starter).run()


@dataclass(eq=False)
class _Running:
    """A request whose last response is not sent. `texts` are those that have not ended."""

    request: InferenceRequest
    texts: set[_Text] = field(default_factory=set["_Text"])
    whole: list[TextOutputs] = field(default_factory=list[TextOutputs])  # of a request with one response


@dataclass(eq=False)
class _Text:
    """A text of a request. `outputs` is what is not sent of it."""

    running: _Running
    index: int
    key: str  # in `Call.requests`
    answer: Answer
    outputs: TextOutputs
    num_steps: int = 0


class _InferStream(TextStream):
    """One stream with its requests."""

    def __init__(self, call: Call, starter: AnswerStarter) -> None:
        super().__init__(call)
        self._starter = starter
        self._num_requests = 0
        self._texts: dict[OutputQueue, _Text] = {}
        self._errors: deque[oip.ModelStreamInferResponse] = deque()  # each is the last response of a request

    # ---- requests ---------------------------------------------------------------------------------------------------

    async def _answer(self, data: bytes) -> None:
        message = parse(oip.ModelInferRequest, data)
        try:
            await self._start(message)
        except RequestError as error:
            self._fail(error, message.model_name, message.id)
        except Exception as fault:
            self._fail(report_fault(log, message.id[:_MAX_NAME_CHARACTERS], fault), message.model_name, message.id)

    async def _start(self, message: oip.ModelInferRequest) -> None:
        """Starts the texts of a request. Raises RequestError."""
        deadline = read_deadline(message.parameters, deadline_of(self._call))
        request = read_request(
            message,
            self._starter.find(message.model_name, "model_name"),
            self._call.limits.max_texts_per_stream,
            is_stream=True,
        )
        num_texts = len(request.messages)
        await self._wait_for_room(num_texts)
        num_begun = 0
        try:
            for _ in range(num_texts):
                await self._call.begin_request()
                num_begun += 1
            answers = await start_request(self._starter, request, self._call.client, deadline, self._ready)
        except BaseException:
            for _ in range(num_begun):
                self._call.end_request()
            raise
        self._num_open += num_texts
        self._num_requests += 1
        running = _Running(request)
        for index, answer in enumerate(answers):
            # No id has a line feed: CancelAttribution finds requests by `_cancel`.
            text = _Text(running, index, f"{self._num_requests}\n{index}", answer, TextOutputs(scores=request.scores))
            running.texts.add(text)
            running.whole.append(text.outputs)
            self._texts[answer.queue] = text
            self._call.requests[text.key] = answer.state

    def _cancel(self, request_id: str) -> int:
        found = {text.running for text in self._texts.values() if text.running.request.request_id == request_id}
        for running in found:
            self._end(running)
            self._fail(cancelled(), running.request.model, running.request.client_id)
        return len(found)

    def _end(self, running: _Running) -> None:
        """Ends all texts of a request, whose last response is about to be sent."""
        for text in list(running.texts):
            text.answer.queue.cancel()
            self._forget(text)
            self._num_open -= 1

    def _forget(self, text: _Text) -> None:
        """Forgets a text that has ended. It counts until its last response is sent."""
        del self._texts[text.answer.queue]
        del self._call.requests[text.key]
        text.running.texts.remove(text)
        self._call.end_request()

    def _fail(self, error: RequestError, model: str, client_id: str) -> None:
        self._num_open += 1
        name, request_id = model[:_MAX_NAME_CHARACTERS], client_id[:_MAX_NAME_CHARACTERS]
        self._errors.append(make_stream_error(error, name, request_id))
        self._ready.wake()

    def _close(self) -> Sequence[asyncio.Task[None]]:
        for text in self._texts.values():
            text.answer.queue.cancel()
        return ()

    # ---- responses --------------------------------------------------------------------------------------------------

    async def _send_events(self, queues: deque[OutputQueue]) -> None:
        while queues or self._errors:
            while self._errors:
                await self._call.write(self._errors.popleft())
                self._num_open -= 1
                self._has_room.set()
            if queues:
                queue = queues.popleft()
                await self._send_outputs(queue)
                if queue in self._texts and queue.has_more:
                    queues.append(queue)

    async def _send_outputs(self, queue: OutputQueue) -> None:
        """Sends what a text has, as far as a message has room in other streams."""
        text = self._texts.get(queue)
        if text is None:  # the text has ended
            return
        try:
            outputs = queue.take(MESSAGE_BYTES)
        except RequestError as error:
            await self._send_failure(text, error)
            return
        for group in group_outputs(outputs or ()):
            response = service_pb.AttributeResponse()
            text.answer.fill(response, group)
            await self._send_group(text, response)
            if queue not in self._texts:  # cancelled meanwhile, or at its end
                return
        queue.release_sent()

    async def _send_group(self, text: _Text, response: service_pb.AttributeResponse) -> None:
        running = text.running
        if not running.request.streams:
            text.outputs.add(response)
            if response.HasField("finished"):
                await self._end_whole(text)
            return
        if response.HasField("finished"):
            await self._send_end(text, response.finished)
            return
        for step in response.steps.steps:
            await self._send_step(text, step)
            if text not in running.texts:
                return
        if not response.HasField("steps"):
            text.outputs.add(response)  # goes with the first step

    async def _send_step(self, text: _Text, step: service_pb.Step) -> None:
        request, source = text.running.request, text.outputs
        parts: set[Part] = {"step"} if text.num_steps else {"source", "step"}
        outputs = [output for output in request.outputs if output.part in parts]
        text.num_steps += 1
        text.outputs = TextOutputs(scores=request.scores)
        if not outputs:
            return
        now = TextOutputs(step.text, request.scores, source.started, source.encoder_self, [step])
        response = make_response(request, [now], outputs)
        response.parameters["text_index"].int64_param = text.index
        response.parameters["step"].int64_param = step.index
        await self._call.write(make_stream_response(response, is_final=False))

    async def _send_end(self, text: _Text, finished: service_pb.Finished) -> None:
        """Sends what the end of a text has. Where it has nothing, a client that has not asked for it gets nothing."""
        running, request = text.running, text.running.request
        self._forget(text)
        is_final = not running.texts
        outputs = [output for output in request.outputs if output.part == "end"]
        if outputs or (is_final and request.sends_empty_final):
            response = make_response(request, [TextOutputs(finished=finished)], outputs)
            response.parameters["text_index"].int64_param = text.index
            await self._call.write(make_stream_response(response, is_final=is_final))
        self._num_open -= 1
        self._has_room.set()

    async def _end_whole(self, text: _Text) -> None:
        """Sends the one response of a request, when the last of its texts has ended."""
        running = text.running
        self._forget(text)
        if not running.texts:
            response = make_response(running.request, running.whole)
            await self._call.write(make_stream_response(response, is_final=True))
        self._num_open -= 1
        self._has_room.set()

    async def _send_failure(self, text: _Text, error: RequestError) -> None:
        """Sends the failure of a text. The other texts of a request with one response have no response to go in."""
        running, request = text.running, text.running.request
        self._forget(text)
        if not request.streams:
            self._end(running)
        is_final = not running.texts
        response = make_stream_error(error, request.model, request.client_id, index=text.index, is_final=is_final)
        await self._call.write(response)
        self._num_open -= 1
        self._has_room.set()
