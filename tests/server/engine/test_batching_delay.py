"""When an engine with nothing to do waits a moment for more requests, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc.aio
import pytest
from harness import serving
from mixed_requests import mixed_requests
from sidelight.server.engine import batching_delay
from sidelight.server.engine.batching_delay import BatchingDelay
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.engine.output_queue import OutputQueue
from sidelight.server.request import Request
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.text.tokenizer import Token, TokenizedText
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as pb_grpc


class Clock:
    """Time passes in sleeps alone, and some come at set times."""

    def __init__(self, arrivals: list[float]):
        self.now = 0.0
        self.arrivals = arrivals

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def count(self) -> int:
        return sum(arrival <= self.now for arrival in self.arrivals)


@pytest.fixture
def wait_for(monkeypatch):
    """How many requests have arrived, and when, after a wait. They arrive at set times."""

    def wait(delay: BatchingDelay, arrivals: list[float], enough: int = 32) -> tuple[int, float]:
        clock = Clock(arrivals)
        monkeypatch.setattr(batching_delay, "time", clock)
        delay.wait(clock.count, lambda: clock.count() >= enough)
        return clock.count(), clock.now

    return wait


def expecting() -> BatchingDelay:
    delay = BatchingDelay()
    delay.record([0.0, 0.001], was_idle=True)
    return delay


def test_nobody_waits_where_requests_come_alone(wait_for):
    waiting = BatchingDelay()
    for second in range(5):
        assert wait_for(waiting, [0.0]) == (1, 0.0)
        waiting.record([float(second)], was_idle=True)


def test_a_burst_is_expected_after_one():
    """After several together, or one alone with others close behind, and not after one that comes much later."""
    close, late, busy = BatchingDelay(), BatchingDelay(), BatchingDelay()
    close.record([0.0], was_idle=True)
    close.record([0.004, 0.005], was_idle=False)
    assert close._expects_burst
    late.record([0.0], was_idle=True)
    late.record([0.1], was_idle=False)
    assert not late._expects_burst
    busy.record([0.1], was_idle=False)
    busy.record([0.101], was_idle=False)
    assert not busy._expects_burst
    assert expecting()._expects_burst


def test_a_wait_ends_when_nobody_comes_any_more(wait_for):
    count, seconds = wait_for(expecting(), [0.0, 0.0005, 0.0012, 0.0019, 0.05])
    assert count == 4
    assert seconds == pytest.approx(0.003)


def test_a_wait_ends_when_as_many_have_come_as_there_are_slots(wait_for):
    assert wait_for(expecting(), [0.0005 * place for place in range(40)], enough=4)[0] in (4, 5, 6)
    assert wait_for(expecting(), [0.0] * 4, enough=4) == (4, 0.0)


def test_a_wait_ends_where_they_never_stop_coming(wait_for):
    _, seconds = wait_for(expecting(), [0.0005 * place for place in range(1000)], enough=1000)
    assert 0.02 <= seconds < 0.022


def test_waits_for_nothing_come_to_an_end(wait_for):
    waiting = expecting()
    for _ in range(3):
        assert wait_for(waiting, [0.0])[1] > 0
    assert wait_for(waiting, [0.0]) == (1, 0.0)
    # Another burst, and waits are worth it again.
    waiting.record([0.0, 0.001], was_idle=True)
    assert wait_for(waiting, [0.0])[1] > 0


def test_sources_of_a_burst_are_read_together(zoo, monkeypatch):
    """A server that has met bursts reads the sources of one at once; what each writes is what it writes alone."""
    joined: list[int] = []
    add = ModelRunner.add

    def counted(self, requests, **options):
        joined.append(len(requests))
        return add(self, requests, **options)

    monkeypatch.setattr(ModelRunner, "add", counted)
    monkeypatch.setattr(batching_delay, "_QUIET", 0.2)  # this machine may have other things to do
    monkeypatch.setattr(batching_delay, "_LONGEST", 5.0)
    monkeypatch.setattr(batching_delay, "_TOGETHER", 5.0)
    with serving(zoo("marian")) as address:
        alone = asyncio.run(_texts(address, 1))
        asyncio.run(_texts(address, 6))
        joined.clear()
        together = asyncio.run(_texts(address, 6))
    assert joined == [6]
    assert set(together) == set(alone)


def test_a_wait_ends_where_more_sources_would_not_be_read_faster(zoo):
    loaded = zoo("marian")
    (short,) = mixed_requests(loaded, "marian", 1)
    long = replace(short, source=TokenizedText("", (Token(5, "", 0, 0, False, ""),) * 200))

    async def arrive(request: Request, count: int, slots: int) -> list[bool]:
        """After each arrival, whether the waiting requests fill a batch. The engine has not started."""
        engine, enough = Engine(loaded, EngineConfig(max_running=slots)), list[bool]()
        scheduler = engine._make_core()._scheduler
        for _ in range(count):
            engine.submit(request, OutputQueue(engine.wake))
            enough.append(scheduler._fills_batch(slots))
        return enough

    assert asyncio.run(arrive(long, 4, 32)) == [False, False, True, True]
    assert asyncio.run(arrive(short, 4, 3)) == [False, False, True, True]


async def _texts(address: str, count: int) -> list[str]:
    request = pb.AttributeRequest()
    request.source.text = "The lazy dog"
    request.decoding.max_new_tokens = 8

    async def text() -> str:
        return [response.finished.text async for response in stub.Attribute(request, timeout=60)][-1]

    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.AttributionServiceStub(channel)
        return await asyncio.gather(*(text() for _ in range(count)))
