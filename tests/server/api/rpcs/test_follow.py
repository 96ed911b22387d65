"""The Follow RPC: how many streams there are, for how long, and how they end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import grpc
import pytest
from follow_driver import (
    FollowDriver,
    assert_as_given,
    details_of,
    event,
    start,
    text,
    token_ids,
)
from harness import serving, stub, wait_until
from hostile_clients import reason_of_aio
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.follow import follow_places
from sidelight.server.operations import CallLimits, ModelLimits
from sidelight.v1 import attribution_service_pb2_grpc as services

SENTENCE = "Where did you buy that old book?"

SOURCE = event(source=text(SENTENCE))


@pytest.fixture
def service(bundled_server):
    with stub(bundled_server) as service:
        yield service


def test_a_broken_stream_loses_only_itself(service):
    healthy = FollowDriver(service)
    healthy.add_source(SENTENCE)
    with pytest.raises(grpc.RpcError):
        list(service.Follow(iter([start(), SOURCE, event(take_back=1)]), timeout=60))
    healthy.add_text("Wo hast du")
    assert healthy.finish().text == "Wo hast du"
    assert_as_given(service, healthy.stretches)


def test_cancelled_streams_leave_nothing(bundled, engines):
    with serving(replace(bundled, limits=ModelLimits(max_follow_streams=2))) as address, stub(address) as service:
        drivers = [FollowDriver(service) for _ in range(2)]
        for driver in drivers:
            driver.add_source(SENTENCE)
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Follow(iter([start(), SOURCE]), timeout=60))
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # pyright: ignore[reportAttributeAccessIssue]
        for driver in drivers:
            driver.call.cancel()
            driver.close()
        wait_until(lambda: not engines[0]._admission._states)
        assert engines[0]._core.requests.runner.num_free_slots == engines[0].num_slots
        wait_until(lambda: can_follow(service))


def can_follow(service) -> bool:
    try:
        return list(service.Follow(iter([start(), SOURCE]), timeout=60))[-1].HasField("finished")
    except grpc.RpcError:
        return False


def test_silent_streams_keep_nobody_out(bundled, monkeypatch):
    """The stream whose client has sent nothing for longest gives its place, with or without a source."""
    monkeypatch.setattr(follow_places, "_MIN_IDLE_SECONDS", 0.2)
    with serving(replace(bundled, limits=ModelLimits(max_follow_streams=2))) as address, stub(address) as service:
        silent, live = FollowDriver(service), FollowDriver(service)
        live.add_source(SENTENCE)
        time.sleep(0.3)
        live.add_text("Wo hast du")
        assert can_follow(service)
        with pytest.raises(grpc.RpcError) as raised:
            list(silent.call)
        silent.close()
        assert details_of(raised.value)[1] == "STREAM_IDLE"  # pyright: ignore[reportArgumentType]
        assert live.finish().text == "Wo hast du"


@pytest.mark.parametrize(
    ("limit", "reason"), [("stream_idle_timeout", "CLIENT_SILENT"), ("max_stream_age", "STREAM_TOO_OLD")]
)
def test_streams_do_not_wait_for_ever(bundled, limit, reason):
    with serving(bundled, call_limits=CallLimits(**{limit: 0.3})) as address, stub(address) as service:
        driver = FollowDriver(service)
        driver.send(source=text(SENTENCE))
        with pytest.raises(grpc.RpcError) as raised:
            list(driver.call)
        driver.close()
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue]
        assert details_of(raised.value)[1] == reason  # pyright: ignore[reportArgumentType]


async def test_a_server_that_ends_does_what_was_sent_and_says_why(bundled):
    """Streams that wait do not hold up the end: neither those without a slot, nor those without a source."""
    server = Server([bundled], "127.0.0.1:0", EngineConfig(max_running=2))
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        calls = [services.AttributionServiceStub(channel).Follow() for _ in range(5)]
        for call in calls:
            await call.write(start())
        for call in calls[1:]:
            await call.write(SOURCE)
            assert (await call.read()).HasField("started")
        busy = calls[-1]
        await busy.write(event(target=token_ids(*[9] * 150)))
        steps = [*(await busy.read()).steps.steps]

        async def read_rest(call) -> None:
            while True:
                steps.extend((await call.read()).steps.steps)

        stopping = asyncio.create_task(server.stop(60))
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await read_rest(call)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
            assert reason_of_aio(raised.value) == "SHUTTING_DOWN"
        assert len(steps) == 150
        await asyncio.wait_for(stopping, 30)
