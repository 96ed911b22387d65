"""ModelInfer: all texts of a request go to the engine together, and one response has the tensors of all of them."""

from __future__ import annotations

import asyncio

from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..call import Call
from ..parsing import parse
from ..rpcs import MESSAGE_BYTES, Answer, AnswerStarter, deadline_of, group_outputs
from .inference_request import read_request
from .outputs import TextOutputs
from .parameters import read_deadline
from .responses import make_response
from .starting import start_request


class ModelInferMethod:
    """ModelInfer over the engines of all models. For one event loop."""

    def __init__(self, starter: AnswerStarter) -> None:
        self._starter = starter

    async def answer(self, call: Call) -> None:
        """Answers one call. Raises RequestError."""
        message = parse(oip.ModelInferRequest, await call.read())
        deadline = read_deadline(message.parameters, deadline_of(call))
        loaded = self._starter.find(message.model_name, "model_name")
        request = read_request(message, loaded, call.limits.max_texts_per_stream, is_stream=False)
        call.request_id = request.request_id
        for _ in request.messages:
            await call.begin_request()
        answers = await start_request(self._starter, request, call.client, deadline)
        try:
            for index, answer in enumerate(answers):
                call.requests[f"{index}"] = answer.state
            await call.send_headers()  # while the engine works
            texts = await collect_all(answers, [TextOutputs(scores=request.scores) for _ in answers])
            await call.write(make_response(request, texts))
        finally:
            for answer in answers:
                answer.queue.cancel()


async def collect_all(answers: list[Answer], texts: list[TextOutputs]) -> list[TextOutputs]:
    """Returns all outputs of several answers. Raises the first error. Ends with its tasks, in any case."""
    tasks = [asyncio.create_task(_collect(answer, text)) for answer, text in zip(answers, texts, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _collect(answer: Answer, text: TextOutputs) -> TextOutputs:
    while outputs := await answer.queue.get(MESSAGE_BYTES):
        for group in group_outputs(outputs):
            response = service_pb.AttributeResponse()
            answer.fill(response, group)
            text.add(response)
    return text
