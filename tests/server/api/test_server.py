"""The server refuses messages and metadata that are too large, and methods that it does not have yet."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from harness import request, stub
from hostile_clients import EXHAUSTED
from sidelight.v1 import attribution_service_pb2 as pb


@pytest.mark.parametrize("method", ["Follow"])
@pytest.mark.parametrize("sends", ["nothing", "much", "one, and waits"])
async def test_methods_of_later_versions_are_unimplemented_for_asyncio_too(bundled_server, method, sends):
    """Clients that are still sending take a status that comes before for a fault of the connection."""

    async def messages():
        for _ in range({"nothing": 0, "much": 200}.get(sends, 1)):
            yield b"\x0a\x64" + b"\x00" * 100
        if sends == "one, and waits":
            await asyncio.sleep(30)

    async with grpc.aio.insecure_channel(bundled_server) as channel:
        call = channel.stream_stream(f"/sidelight.v1.AttributionService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call(messages(), timeout=60):
                pass
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_beyond_the_limit_is_refused(bundled_server):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(request("x" * (4 * 1024**2 + 1)), timeout=60))
    assert raised.value.code() == EXHAUSTED


@pytest.mark.parametrize("entries", [[("x", "y" * 20_000)], [(f"x{number}", "y" * 900) for number in range(40)]])
def test_metadata_beyond_the_limit_are_refused(bundled_server, entries):
    with stub(bundled_server) as service:
        assert service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=[("x", "y" * 12_000)]).models
        with pytest.raises(grpc.RpcError) as raised:
            service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=entries)
    assert raised.value.code() == EXHAUSTED
