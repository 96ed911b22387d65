"""Starts the texts of a request: the very way that the texts of sidelight.v1 take."""

from __future__ import annotations

from collections.abc import Hashable

from ...engine import ReadyQueues
from ...errors import RequestError
from ..rpcs import Answer, AnswerStarter
from .inference_request import InferenceRequest
from .parameters import rename_field


async def start_request(
    starter: AnswerStarter,
    request: InferenceRequest,
    client: Hashable,
    deadline: float | None,
    ready: ReadyQueues | None = None,
) -> list[Answer]:
    """Returns an answer for each text of a request. Raises RequestError with the name of the tensor or parameter."""
    messages = list(zip(request.messages, request.validators, strict=True))
    try:
        return await starter.start_all(
            messages, request.num_bytes, request.request_id, client, deadline, ready, request.check
        )
    except RequestError as error:
        raise rename_field(error) from None
