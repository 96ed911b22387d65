"""The Align RPC: the links of a pair, and the markup of its source in its target."""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from ..call import Call
from ..parsing import parse
from ..validation import request_id_of
from .aligner import Aligner
from .attribute import deadline_of


class AlignMethod:
    """The Align RPC over the engines of all models. For one event loop."""

    def __init__(self, aligner: Aligner) -> None:
        self._aligner = aligner

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        data = await call.read()
        message = parse(service_pb.AlignRequest, data)
        call.request_id = request_id_of(message)
        await call.begin_request()
        response = await self._aligner.align(
            message, call.request_id, call.client, deadline_of(call), call.requests.__setitem__
        )
        await call.write(response)
