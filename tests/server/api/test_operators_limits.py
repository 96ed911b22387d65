"""Each limit that an operator can change: a server keeps the limit that is set, and says so before it does any work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from harness import CROSS, DECODER_SELF, request, serving, stub, wait_until
from hostile_clients import ATTRIBUTE, EXHAUSTED, INVALID, NARROW, SENTENCE, long_request, reason_of_aio
from raw_http2 import RawConnection
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.operations import CallLimits, ModelLimits
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

# HTTP/2's code for a client that asks for too much.
CALM = 11

LIMITS = CallLimits(
    max_message_bytes=100_000,
    max_metadata_bytes=2000,
    max_concurrent_streams=4,
    min_ping_interval=1000.0,
    max_texts_per_stream=3,
)
MODEL_LIMITS = ModelLimits(max_new_tokens=20, max_step_bytes=8000, max_follow_streams=5)


@pytest.fixture(scope="module")
def address(bundled) -> Iterator[str]:
    """A server with small limits."""
    with serving(replace(bundled, limits=MODEL_LIMITS), call_limits=LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def service(address) -> Iterator[services.AttributionServiceStub]:
    with stub(address) as service:
        yield service


def refusal(service, message, **options) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60, **options))
    return raised.value.code(), reason_of_aio(raised.value)  # pyright: ignore[reportAttributeAccessIssue]


def answers(service) -> bool:
    return list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")


def test_get_model_says_the_limits(service):
    limits = service.GetModel(pb.GetModelRequest(), timeout=60).model.limits
    assert (limits.max_request_bytes, limits.max_texts_per_stream, limits.max_follow_streams) == (100_000, 3, 5)
    assert limits.max_new_tokens == 20


def test_messages_and_metadata(service):
    assert refusal(service, request("x" * 100_000))[0] == EXHAUSTED
    assert refusal(service, request("x"), metadata=[("x", "y" * 2000)])[0] == EXHAUSTED
    assert list(service.Attribute(request("A dog."), metadata=[("x", "y" * 1000)], timeout=60))[-1].HasField("finished")


def test_the_steps_of_a_request(service):
    many = text.Decoding(max_new_tokens=21, ignore_eos=True)
    assert refusal(service, request("A dog.", decoding=many)) == (INVALID, "OUT_OF_RANGE")
    for decoding in (text.Decoding(max_new_tokens=20, ignore_eos=True), text.Decoding(ignore_eos=True)):
        responses = list(service.Attribute(request("A dog.", decoding=decoding), timeout=60))
        assert responses[-1].finished.usage.target_tokens == 20


def test_the_attention_of_a_step(bundled, service, monkeypatch):
    """The model computes nothing for a request that is refused."""
    steps_of_model = request(SENTENCE, kinds=[DECODER_SELF, CROSS])
    assert answers(service)
    with monkeypatch.context() as patch:
        patch.setattr(type(bundled.model), "forward", lambda *_, **__: 1 / 0)
        steps_of_model.given.text = "Hund " * 200
        assert refusal(service, steps_of_model) == (EXHAUSTED, "CAPTURE_TOO_LARGE")
    assert list(service.Attribute(request("A dog.", kinds=[CROSS]), timeout=60))[-1].HasField("finished")


def test_calls_of_a_connection_beyond_the_limit_are_reset(service, address):
    with RawConnection(address) as raw:
        for _ in range(4):
            raw.call(ATTRIBUTE, request("A dog.").SerializeToString(), of=50_000)
        raw.call(ATTRIBUTE, request("A dog.").SerializeToString())
        assert raw.until_refused() == CALM
    assert answers(service)


def test_calls_that_are_reset_at_once_do_not_pile_up(service, address):
    """HTTP/2's "rapid reset": what is open on the server counts, not what is open for the client."""
    with RawConnection(address) as raw:
        for _ in range(2000):
            raw.reset(raw.call(ATTRIBUTE, long_request().SerializeToString()))
        assert raw.until_refused() == CALM
        assert answers(service)
    assert answers(service)


def test_a_connection_with_too_many_pings_is_closed(service, address):
    with RawConnection(address) as raw:
        for _ in range(4):  # gRPC closes at the third that comes too early
            raw.ping()
        assert raw.until_refused() == CALM
    assert answers(service)


async def test_the_bytes_that_are_held_for_a_reader(bundled, engines):
    config = EngineConfig(max_unread_bytes=2000)
    with serving(bundled, limits=config) as address:
        async with grpc.aio.insecure_channel(address, options=NARROW) as channel:
            call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))
            await call.read()
            await asyncio.to_thread(
                wait_until, lambda: any(state.queue.is_full for state in engines[0]._admission._states)
            )
            (state,) = engines[0]._admission._states
            assert state.queue._held_bytes < 100_000
            call.cancel()


@pytest.mark.slow
async def test_streams_of_many_texts_have_an_end(bundled):
    """An old one answers what it has read; one whose client is silent, and where nothing runs, ends."""
    for limits, reason, seconds in (
        (CallLimits(max_stream_age=1.0), "STREAM_TOO_OLD", 0.0),
        (CallLimits(stream_idle_timeout=1.5), "CLIENT_SILENT", 3.0),
    ):
        with serving(bundled, call_limits=limits) as address:
            async with grpc.aio.insecure_channel(address) as channel:
                stream = services.AttributionServiceStub(channel).AttributeMany()
                for number in range(6):
                    message = long_request(request_id=str(number))
                    await stream.write(pb.AttributeManyRequest(attribute=message))
                await asyncio.sleep(seconds)
                finished: list[str] = []

                async def read_on(stream=stream, finished=finished) -> None:
                    while (response := await stream.read()) is not grpc.aio.EOF:
                        events = response.batch.responses if response.HasField("batch") else [response]
                        finished += [event.request_id for event in events if event.response.HasField("finished")]

                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await read_on()
        assert (raised.value.code(), reason_of_aio(raised.value)) == (grpc.StatusCode.DEADLINE_EXCEEDED, reason)
        assert sorted(finished, key=int) == [str(number) for number in range(6)]


@pytest.mark.slow
async def test_a_stream_that_is_too_old_ends_whatever_it_does(bundled):
    with serving(bundled, call_limits=CallLimits(max_stream_age=0.5)) as address:
        async with grpc.aio.insecure_channel(address, options=NARROW) as channel:
            call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))

            async def read_slowly() -> None:
                while await call.read() is not grpc.aio.EOF:
                    await asyncio.sleep(0.2)

            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await read_slowly()
    assert reason_of_aio(raised.value) == "STREAM_TOO_OLD"


async def test_an_old_connection_takes_no_more_calls_and_those_in_flight_go_on(bundled):
    """Also while the server ends."""
    server = Server([bundled], "127.0.0.1:0", limits=CallLimits(max_connection_age=0.5))
    address = await server.start()
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        service = services.AttributionServiceStub(channel)
        follow = service.Follow()
        await follow.write(pb.FollowRequest(start=pb.FollowStart()))
        await follow.write(pb.FollowRequest(source=text.Text(text=SENTENCE)))
        assert (await follow.read()).HasField("started")
        peers: set[str] = set()
        end = time.monotonic() + 2
        identify = server._grpc_server.calls._authenticator.identify
        server._grpc_server.calls._authenticator.identify = lambda context: (
            peers.add(context.peer()) or identify(context)
        )
        while time.monotonic() < end:
            async for _ in service.Attribute(request("A dog.")):
                pass
            await asyncio.sleep(0.1)
        assert len(peers) > 1
        await follow.write(pb.FollowRequest(target=text.Text(text="Meine Oma")))
        stopping = asyncio.create_task(server.stop(10))
        await asyncio.sleep(0.1)
        await follow.done_writing()
        last = pb.FollowResponse()
        while (response := await follow.read()) is not grpc.aio.EOF:
            last = response
        assert last.HasField("finished")
        await stopping
