"""The Follow RPC: how many streams there are, for how long, and how they end."""

from __future__ import annotations

import grpc
import pytest
from follow_driver import (
    FollowDriver,
    assert_as_given,
    details_of,
    event,
    start,
    text,
)
from harness import serving, stub, wait_until
from sidelight.server.api.rpcs import follow

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


def test_cancelled_streams_leave_nothing(bundled, engines, monkeypatch):
    monkeypatch.setattr(follow, "MAX_FOLLOW_STREAMS", 2)
    with serving(bundled) as address, stub(address) as service:
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


@pytest.mark.parametrize(
    ("limit", "reason"), [("_MAX_IDLE_SECONDS", "STREAM_IDLE"), ("_MAX_AGE_SECONDS", "STREAM_TOO_OLD")]
)
def test_streams_do_not_wait_for_ever(bundled_server, monkeypatch, limit, reason):
    monkeypatch.setattr(follow, limit, 0.3)
    with stub(bundled_server) as service:
        driver = FollowDriver(service)
        driver.add_source(SENTENCE)
        with pytest.raises(grpc.RpcError) as raised:
            list(driver.call)
        driver.close()
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # pyright: ignore[reportAttributeAccessIssue]
        assert details_of(raised.value)[1] == reason  # pyright: ignore[reportArgumentType]
