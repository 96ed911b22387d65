"""Follow streams that wait, stall, or run beside others."""

from __future__ import annotations

import contextlib
import time

import grpc
import numpy as np
import pytest
from follow_driver import (
    FollowDriver,
    align_att,
    array,
    assert_as_given,
    event,
    start,
    text,
    token_ids,
)
from harness import CROSS, request, serving, steps_of, stub, wait_until
from hostile_clients import NARROW
from sidelight.server.engine import output_queue, preemption
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.started_requests import StartedRequests
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2_grpc as services

SENTENCE = "Where did you buy that old book?"

SOURCE = event(source=text(SENTENCE))


@pytest.fixture
def service(bundled_server):
    with stub(bundled_server) as service:
        yield service


def options_of(number: int) -> dict:
    """Streams with each method, with special tokens and without."""
    names = ("METHOD_WEIGHTS", "METHOD_ROLLOUT", "METHOD_VALUE_NORMS")
    special = attention.SPECIAL_TOKENS_KEEP if number % 2 else attention.SPECIAL_TOKENS_RENORMALIZE
    capture = attention.Capture(method=attention.Method.Value(names[number % 3]), special_tokens=special)
    return {"scores": [attention.SCORE_PROBABILITY], "capture": capture}


def follow_in_turns(service, num_streams: int, pause: float = 0.0) -> list[FollowDriver]:
    """Several streams that take turns. Each waits while the others go on."""
    drivers = [FollowDriver(service, **options_of(number)) for number in range(num_streams)]
    for number, driver in enumerate(drivers):
        driver.add_source(f"Where did you buy that old book {number}")
    for word in ("Wo", " hast", " du"):
        for driver in drivers:
            driver.add_text(word)
            time.sleep(pause)
    for driver in drivers:
        driver.add_source(" today?")
        driver.add_text(" dieses alte Buch")
        assert driver.finish().text == "Wo hast du dieses alte Buch"
    return drivers


@pytest.mark.parametrize("max_preempted", [8, 1])
def test_idle_streams_give_up_their_slots(bundled, engines, monkeypatch, max_preempted):
    """Where few may be preempted, streams lose their caches too, and make them anew."""
    drops = count_calls(monkeypatch, "drop")
    preemptions = count_calls(monkeypatch, "preempt")
    limits = EngineConfig(max_running=2, max_preempted=max_preempted)
    with serving(bundled, limits=limits) as address, stub(address) as service:
        drivers = follow_in_turns(service, 5)
        for number, driver in enumerate(drivers):
            assert_as_given(service, driver.stretches, **options_of(number))
        assert len(preemptions) > 5
        assert (len(drops) > 5) == (max_preempted == 1)
        wait_until(lambda: not engines[0]._admission._states)


def test_streams_that_are_idle_for_long_hold_no_cache(bundled, engines, monkeypatch):
    monkeypatch.setattr(preemption, "_LONG_IDLE_SECONDS", 0.02)
    with serving(bundled) as address, stub(address) as service:
        driver = FollowDriver(service)
        driver.add_source("Where did you")
        driver.add_text("Wo hast")
        (state,) = engines[0]._admission._states
        wait_until(lambda: state.sequence is None)
        assert engines[0]._core.requests.runner.num_free_slots == engines[0].num_slots
        driver.add_source(" buy that?")
        wait_until(lambda: state.sequence is None)
        driver.add_text(" du")
        driver.finish()
        assert_as_given(service, driver.stretches)


def count_calls(monkeypatch, name: str) -> list[object]:
    """Grows with each call of a method of StartedRequests."""
    calls: list[object] = []
    method = getattr(StartedRequests, name)

    def counted(requests, state):
        calls.append(state)
        method(requests, state)

    monkeypatch.setattr(StartedRequests, name, counted)
    return calls


def test_neighbours_keep_their_tokens(bundled):
    message = request(SENTENCE, [CROSS], scores=[attention.SCORE_PROBABILITY])
    with serving(bundled, limits=EngineConfig(max_running=4)) as address, stub(address) as service:
        alone = steps_of(list(service.Attribute(message, timeout=60)))
        driver = FollowDriver(service, scores=[attention.SCORE_ENTROPY], policy=align_att(words=1))
        driver.add_source("Where")
        for word in ("Wo", " hast", " du", " dieses", " alte", " Buch"):
            calls = [service.Attribute(message, timeout=60) for _ in range(3)]
            driver.add_text(word)
            driver.add_source(" old")
            for call in calls:
                steps = steps_of(list(call))
                assert [step.token for step in steps] == [step.token for step in alone]
                for step, other in zip(steps, alone, strict=True):
                    np.testing.assert_allclose(array(step.cross), array(other.cross), atol=1e-5)
        driver.finish()
        assert_as_given(service, driver.stretches, scores=[attention.SCORE_ENTROPY])


def test_a_stalled_reader_holds_up_its_own_stream_only(bundled, engines, monkeypatch):
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    with serving(bundled) as address, stub(address) as service, contextlib.ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(address, options=NARROW))
        events = [start(), SOURCE, *[event(target=token_ids(*[9] * 50)), event(take_back=50)] * 20]
        call = services.AttributionServiceStub(channel).Follow(iter(events), timeout=120)
        wait_until(lambda: any(state.queue.is_full for state in engines[0]._admission._states))
        (state,) = engines[0]._admission._states
        assert len(state.follow.events._events) <= 64
        for _ in range(3):
            assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")
        counts = [r.step_count for r in call if r.HasField("step_count")]
        assert counts == [0] * 20
