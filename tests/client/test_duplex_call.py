"""What gRPC does where the server ends a call while the client sends, in each order, played by a scripted call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import permutations

import grpc
import pytest
from sidelight.client import streams
from sidelight.client.streams import EOF, DuplexCall

OWN = (grpc.StatusCode.INTERNAL, "Internal error from Core")
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")
INTERNAL = (grpc.StatusCode.INTERNAL, "something went wrong, with reference 12")
OK = (grpc.StatusCode.OK, "")


class ScriptedCall:
    """A call that ends with several statuses, one after another, as gRPC's calls do that fail while they send.

    A read finds the end after `num_seen` statuses. The other statuses come later. gRPC reports only the first status.
    """

    def __init__(self, responses: list[str], statuses: list[tuple[grpc.StatusCode, str]], num_seen: int) -> None:
        self._responses, self._statuses, self._num_seen = responses, statuses, num_seen
        self._status = statuses[0]
        self._callbacks: list[Callable[[ScriptedCall], None]] = []

    def add_done_callback(self, callback: Callable[[ScriptedCall], None]) -> None:
        self._callbacks.append(callback)

    async def __aiter__(self) -> AsyncIterator[str]:
        for response in self._responses:
            await asyncio.sleep(0)
            yield response
        for callback in self._callbacks:
            callback(self)
        self._status = self._statuses[self._num_seen - 1]
        asyncio.get_running_loop().call_later(0.01, setattr, self, "_status", self._statuses[-1])
        if self._status[0] is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(self._status[0], grpc.aio.Metadata(), grpc.aio.Metadata(), self._status[1])

    async def write(self, _: str) -> None:
        raise asyncio.InvalidStateError

    async def code(self) -> grpc.StatusCode:
        return self._status[0]

    async def details(self) -> str:
        return self._status[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()


@pytest.mark.parametrize("status", [REFUSED, INTERNAL, OK])
@pytest.mark.parametrize("num_responses", [0, 3])
async def test_the_servers_status_comes_behind_all_responses(status, num_responses):
    expected = [f"response {number}" for number in range(num_responses)]
    orders = [[status], *map(list, permutations([OWN, status]))]
    for statuses, num_seen in [(order, 1 + seen) for order in orders for seen in range(len(order))]:
        call = DuplexCall(ScriptedCall(expected, statuses, num_seen))
        await call.write("a message that comes too late")
        received = [await call.read() for _ in expected]
        assert received == expected
        if status is OK:
            assert await call.read() is EOF
        else:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call.read()
            assert (raised.value.code(), raised.value.details()) == status


async def test_grpcs_own_error_stands_where_no_status_of_the_server_comes(monkeypatch):
    monkeypatch.setattr(streams, "_STATUS_SECONDS", 0.05)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await DuplexCall(ScriptedCall([], [OWN], 1)).read()
    assert (raised.value.code(), raised.value.details()) == OWN
