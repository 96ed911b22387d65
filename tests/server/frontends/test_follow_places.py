"""The places of follow streams are those of the whole server: two front ends do not have twice as many."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from follow_driver import FollowDriver, details_of
from front_ends import serving_by_front_ends
from harness import wait_until
from sidelight.server.engine.follow import follow_places
from sidelight.server.operations import ModelLimits
from sidelight.v1 import attribution_service_pb2_grpc as services

# More connections than places: both front ends get some.
NUM_CONNECTIONS, NUM_PLACES = 10, 4


@contextlib.contextmanager
def connections(model) -> Iterator[list[services.AttributionServiceStub]]:
    """A server with two front ends and few places, and stubs with a connection each."""
    limited = replace(model, limits=ModelLimits(max_follow_streams=NUM_PLACES))
    with serving_by_front_ends(limited) as address, contextlib.ExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [stack.enter_context(grpc.insecure_channel(address, options)) for _ in range(NUM_CONNECTIONS)]
        yield [services.AttributionServiceStub(channel) for channel in channels]


def open_stream(service, opened: list[FollowDriver]) -> str:
    """Opens a stream, and adds it to a list. Returns the reason of the error where it does not open."""
    driver = FollowDriver(service)
    try:
        driver.add_source("A dog runs.")
    except grpc.RpcError as error:
        driver.close()
        return details_of(error)[1]  # pyright: ignore[reportArgumentType]
    opened.append(driver)
    return ""


def test_streams_of_all_front_ends_count_together(bundled):
    with connections(bundled) as services:
        drivers: list[FollowDriver] = []
        reasons = [open_stream(service, drivers) for service in services]
        assert reasons == [""] * NUM_PLACES + ["TOO_MANY_STREAMS"] * (NUM_CONNECTIONS - NUM_PLACES)
        others: list[FollowDriver] = []
        for service, driver in zip(services[::-1], drivers, strict=False):  # each place that is given back is another's
            driver.finish()
            wait_until(lambda service=service: open_stream(service, others) == "")
        assert open_stream(services[0], others) == "TOO_MANY_STREAMS"


def test_the_stream_that_was_silent_for_longest_gives_its_place_to_another_front_end(bundled, monkeypatch):
    monkeypatch.setattr(follow_places, "_MIN_IDLE_SECONDS", 0.0)
    with connections(bundled) as services:
        drivers = [FollowDriver(service) for service in services[:NUM_PLACES]]
        for driver in drivers:
            driver.add_source("A dog")
        silent, *live = drivers[1:2] + drivers[:1] + drivers[2:]
        for driver in live:
            driver.add_source(" runs.")
        assert open_stream(services[-1], live) == ""
        with pytest.raises(grpc.RpcError) as raised:
            list(silent.call)
        silent.close()
        assert details_of(raised.value)[1] == "STREAM_IDLE"  # pyright: ignore[reportArgumentType]
        for driver in live:
            assert driver.finish()
