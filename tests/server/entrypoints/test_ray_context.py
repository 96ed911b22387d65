"""Calls that another gRPC server has accepted, as Ray hands them over. tests/faults/test_ray.py has Ray itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from harness import CROSS, DECODER_SELF, request, steps_of, wait_until
from hostile_clients import reason_of_aio
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import Engine
from sidelight.server.entrypoints.ray_context import RayContext
from sidelight.server.operations import Security, TokenFile
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

SERVICE = "/sidelight.v1.AttributionService"
SENTENCE = "My grandmother is still vigorous at 82 years old."
LONG = text.Decoding(ignore_eos=True, max_new_tokens=200)


class Requests:
    """Ray's `gRPCInputStream`, as far as it is used."""

    def __init__(self, *messages: bytes, is_cancelled: bool = False) -> None:
        self._messages = list(messages)
        self._is_cancelled = is_cancelled

    async def __anext__(self) -> bytes:
        if not self._messages:
            raise StopAsyncIteration
        return self._messages.pop(0)

    def is_cancelled(self) -> bool:
        return self._is_cancelled


class Context:
    """Ray's `RayServegRPCContext`, as far as it is used."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        self._code: Any = None
        self.trailers: list[Any] = []

    def invocation_metadata(self) -> Any:
        return self._metadata

    def peer(self) -> str:
        return "ipv4:192.0.2.1:50000"

    def code(self) -> Any:
        return self._code

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailers: list[Any]) -> None:
        self.trailers = trailers

    def trailing_metadata(self) -> list[Any]:
        return self.trailers


@asynccontextmanager
async def serving_without_socket(bundled, security: Security | None = None) -> AsyncIterator[Server]:
    server = Server([bundled], None, security=security)
    assert await server.start() == ""
    try:
        assert server.is_serving
        yield server
    finally:
        await server.stop()
    assert not server.is_serving


def respond(server: Server, method: str, requests: Requests, context: Context) -> Any:
    answered: Any = RayContext(requests, context)
    return answered.respond(lambda context: server.answer(f"{SERVICE}/{method}", context))


async def test_methods_answer_without_a_socket(bundled):
    async with serving_without_socket(bundled) as server:
        message = request(SENTENCE, [CROSS]).SerializeToString()
        responses = [each async for each in respond(server, "Attribute", Requests(message), Context())]
        assert responses[-1].HasField("finished")
        (model,) = [each async for each in respond(server, "GetModel", Requests(b""), Context())]
        assert model.model.name == bundled.name


async def test_errors_come_as_a_status_with_details(bundled, tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text('[website]\ntokens = ["a-token-of-the-website-0"]\n')
    async with serving_without_socket(bundled, Security(tokens=TokenFile(str(path)))) as server:
        context: Any = Context()
        assert [each async for each in respond(server, "GetModel", Requests(b""), context)] == []
        assert context.code() is grpc.StatusCode.UNAUTHENTICATED
        context = Context(("authorization", "Bearer a-token-of-the-website-0"))
        message = pb.GetModelRequest(name="other").SerializeToString()
        assert [each async for each in respond(server, "GetModel", Requests(message), context)] == []
        assert (context.code(), reason_of_aio(context)) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")


async def test_a_request_waits_for_a_reader_that_takes_nothing(bundled, engines: list[Engine]):
    """It goes on as soon as the reader reads on, and no step is missing."""
    message = request(SENTENCE, [CROSS, DECODER_SELF], decoding=LONG).SerializeToString()
    async with serving_without_socket(bundled) as server:
        stream = respond(server, "Attribute", Requests(message), Context())
        responses = [await anext(stream)]
        metrics = engines[0].metrics
        while not metrics.num_stalls:
            await asyncio.sleep(0.01)
        assert metrics.num_decoded_steps < 200
        responses += [each async for each in stream]
        assert [step.index for step in steps_of(responses)] == list(range(200))


async def test_a_request_ends_with_its_call(bundled, engines: list[Engine]):
    async with serving_without_socket(bundled) as server:
        message = request(SENTENCE, [CROSS, DECODER_SELF], decoding=LONG).SerializeToString()
        stream = respond(server, "Attribute", Requests(message), Context())
        await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(wait_until, lambda: engines[0].metrics.read_load().num_used_slots == 0)
        assert engines[0].metrics.num_decoded_steps < 200


async def test_a_call_without_its_request_ends_where_the_client_has_gone(bundled):
    async with serving_without_socket(bundled) as server:
        with pytest.raises(asyncio.CancelledError):
            await anext(respond(server, "Attribute", Requests(is_cancelled=True), Context()))
