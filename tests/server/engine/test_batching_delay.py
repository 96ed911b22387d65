"""When an engine with nothing to do waits a moment for more requests, on a clock of the test's own."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc.aio
import pytest
from batches import jobs_of
from harness import serving
from model_zoo import build_model
from sidelight.server.engine import batching_delay as bursts
from sidelight.server.engine.batching_delay import BatchingDelay
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.engine.output_queue import OutputQueue
from sidelight.server.models.loader import load
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
def gathered(monkeypatch):
    """How many have come, and when, after a wait for those who come at some times."""

    def gather(waiting: BatchingDelay, arrivals: list[float], enough: int = 32) -> tuple[int, float]:
        clock = Clock(arrivals)
        monkeypatch.setattr(bursts, "time", clock)
        waiting.gather(clock.count, lambda: clock.count() >= enough)
        return clock.count(), clock.now

    return gather


def expecting() -> BatchingDelay:
    made = BatchingDelay()
    made.begun([0.0, 0.001], was_idle=True)
    return made


def test_nobody_waits_where_requests_come_alone(gathered):
    waiting = BatchingDelay()
    for second in range(5):
        assert gathered(waiting, [0.0]) == (1, 0.0)
        waiting.begun([float(second)], was_idle=True)


def test_a_burst_is_expected_after_one():
    """After several together, or one alone with others close behind, and not after one that comes much later."""
    close, late, busy = BatchingDelay(), BatchingDelay(), BatchingDelay()
    close.begun([0.0], was_idle=True)
    close.begun([0.004, 0.005], was_idle=False)
    assert close._are_expected
    late.begun([0.0], was_idle=True)
    late.begun([0.1], was_idle=False)
    assert not late._are_expected
    busy.begun([0.1], was_idle=False)
    busy.begun([0.101], was_idle=False)
    assert not busy._are_expected
    assert expecting()._are_expected


def test_a_wait_ends_when_nobody_comes_any_more(gathered):
    count, seconds = gathered(expecting(), [0.0, 0.0005, 0.0012, 0.0019, 0.05])
    assert count == 4
    assert seconds == pytest.approx(0.003)


def test_a_wait_ends_when_as_many_have_come_as_there_are_slots(gathered):
    assert gathered(expecting(), [0.0005 * place for place in range(40)], enough=4)[0] in (4, 5, 6)
    assert gathered(expecting(), [0.0] * 4, enough=4) == (4, 0.0)


def test_a_wait_ends_where_they_never_stop_coming(gathered):
    _, seconds = gathered(expecting(), [0.0005 * place for place in range(1000)], enough=1000)
    assert 0.02 <= seconds < 0.022


def test_waits_for_nothing_come_to_an_end(gathered):
    waiting = expecting()
    for _ in range(3):
        assert gathered(waiting, [0.0])[1] > 0
    assert gathered(waiting, [0.0]) == (1, 0.0)
    # Another burst, and waits are worth it again.
    waiting.begun([0.0, 0.001], was_idle=True)
    assert gathered(waiting, [0.0])[1] > 0


def test_sources_of_a_burst_are_read_together(tmp_path, monkeypatch):
    """A server that has met bursts reads the sources of one at once; what each writes is what it writes alone."""
    joined: list[int] = []
    join = ModelRunner.join

    def counted(self, jobs):
        joined.append(len(jobs))
        return join(self, jobs)

    monkeypatch.setattr(ModelRunner, "join", counted)
    monkeypatch.setattr(bursts, "_QUIET", 0.2)  # this machine may have other things to do
    monkeypatch.setattr(bursts, "_LONGEST", 5.0)
    monkeypatch.setattr(bursts, "_TOGETHER", 5.0)
    with serving(load(build_model("marian", tmp_path))) as address:
        alone = asyncio.run(_texts(address, 1))
        asyncio.run(_texts(address, 6))
        joined.clear()
        together = asyncio.run(_texts(address, 6))
    assert joined == [6]
    assert set(together) == set(alone)


def test_a_wait_ends_where_more_sources_would_not_be_read_faster(tmp_path):
    loaded = load(build_model("marian", tmp_path))
    (job,) = jobs_of(loaded, "marian", 1)
    long = replace(job, source=TokenizedText("", (Token(5, "", 0, 0, False, ""),) * 200))

    async def come(job: Request, count: int, slots: int) -> list[bool]:
        """Whether they are enough after each. The engine has not started: those who come wait."""
        engine, enough = Engine(loaded, EngineConfig(running=slots)), list[bool]()
        for _ in range(count):
            engine.submit(job, OutputQueue(engine.wake))
            enough.append(engine._are_enough())
        return enough

    assert asyncio.run(come(long, 4, 32)) == [False, False, True, True]
    assert asyncio.run(come(job, 4, 3)) == [False, False, True, True]


async def _texts(address: str, count: int) -> list[str]:
    request = pb.AttributeRequest()
    request.source.text = "The lazy dog"
    request.decoding.max_new_tokens = 8

    async def text() -> str:
        return [response.finished.text async for response in stub.Attribute(request, timeout=60)][-1]

    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.AttributionServiceStub(channel)
        return await asyncio.gather(*(text() for _ in range(count)))
