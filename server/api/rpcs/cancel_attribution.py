"""The CancelAttribution RPC: ends the requests of an id, whichever connection of the client they came on."""

from __future__ import annotations

from sidelight.v1 import attribution_service_pb2 as service_pb

from ...errors import invalid, not_found, quote
from ..call import Call
from ..calls import Calls
from ..parsing import parse


class CancelAttributionMethod:
    """The CancelAttribution RPC over all open calls. For one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def answer(self, call: Call) -> None:
        """Answers one call."""
        request_id = parse(service_pb.CancelAttributionRequest, await call.read()).request_id
        if not request_id:
            raise invalid("request_id", "REQUIRED", "is needed: the id of the request to cancel")
        num_cancelled = await self._calls.cancel_everywhere(request_id, call.identity)
        if not num_cancelled:
            raise not_found("request_id", "UNKNOWN_REQUEST", f"no request {quote(request_id)} runs")
        await call.write(service_pb.CancelAttributionResponse(cancelled=num_cancelled))
