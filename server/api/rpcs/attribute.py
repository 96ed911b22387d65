"""The Attribute RPC: validates a request, hands it to the engine, and streams the outputs.

Steps that wait for the reader are sent together in one message.
"""

from __future__ import annotations

import time

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..call import Call
from ..parsing import parse
from ..validation import request_id_of
from .answer import MESSAGE_BYTES, AnswerStarter, group_outputs


class AttributeMethod:
    """The Attribute RPC over the engines of all models. For one event loop."""

    def __init__(self, starter: AnswerStarter) -> None:
        self._starter = starter

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        data = await call.read()
        message = parse(service_pb.AttributeRequest, data)
        call.request_id = request_id_of(message)
        await call.begin_request()
        answer = await self._starter.start(message, len(data), call.request_id, call.client, deadline_of(call))
        call.requests[call.request_id] = answer.state
        try:
            await call.send_headers()  # while the engine works
            while outputs := await answer.queue.get(MESSAGE_BYTES):
                for group in group_outputs(outputs):
                    response = service_pb.AttributeResponse()
                    answer.fill(response, group)
                    await call.write(response)
        finally:
            # If the client has gone, or its deadline has passed, the engine drops the request before its next step.
            answer.queue.cancel()


def deadline_of(call: Call) -> float | None:
    """Returns the deadline of a call, by `time.monotonic`; None where there is none."""
    remaining: float | None = call.context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
