"""Follow streams that wait, stall, or run beside others."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from follow_driver import (
    FollowDriver,
    align_att,
    array,
    assert_as_given,
    assert_same_step,
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
from sidelight.server.models.loader import LoadedModel
from sidelight.server.runner.single_sequence import SingleSequenceModel
from sidelight.server.runner.targets import TargetPass, TargetReader
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


@pytest.mark.parametrize("has_slots", [True, False])
def test_a_stream_that_lost_its_cache_reads_its_source_once(bundled, engines, monkeypatch, has_slots):
    """Also where the source grows at the same time: then the old source is not read any more."""
    reads = source_reads(monkeypatch, bundled, has_slots=has_slots)
    model = bundled if has_slots else dataclasses.replace(bundled, backend=None)
    with serving(model) as address, stub(address) as service:
        driver = FollowDriver(service)

        def lose_cache(after: Callable[[], object]) -> None:
            """Makes the stream lose its cache after an event, and then keep it."""
            monkeypatch.setattr(preemption, "_LONG_IDLE_SECONDS", 0.02)
            after()
            (state,) = engines[0]._admission._states
            wait_until(lambda: state.sequence is None)
            monkeypatch.setattr(preemption, "_LONG_IDLE_SECONDS", 30.0)
            del reads[:]

        lose_cache(lambda: driver.add_source("Where did you"))
        driver.add_source(" buy")
        driver.add_text("Wo")
        assert reads == [len(driver.started[-1].source)]
        lose_cache(lambda: driver.add_text(" hast"))
        driver.add_text(" du")
        assert reads == [len(driver.started[-1].source)]
        lose_cache(lambda: driver.take_back(1))
        driver.add_source(" that?")
        driver.add_text(" du")
        assert reads == [len(driver.started[-1].source)]
        driver.finish()
        assert_as_given(service, driver.stretches)


def source_reads(monkeypatch, loaded: LoadedModel, *, has_slots: bool) -> list[int]:
    """Grows with the number of tokens of each source that the encoder reads."""
    reads: list[int] = []

    def count(owner: type, name: str, lengths) -> None:
        method = getattr(owner, name)

        def counted(self, *args, **options):
            reads.extend(lengths(self, *args))
            return method(self, *args, **options)

        monkeypatch.setattr(owner, name, counted)

    if has_slots:
        count(type(loaded.backend), "prefill_sources", lambda *args: args[2].values())
        count(type(loaded.backend), "read_targets", lambda *args: args[1].source_lengths)
    else:
        count(SingleSequenceModel, "encode", lambda *args: [args[0].source_length])
    return reads


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


# ---- streams that catch up ------------------------------------------------------------------------------------------

IDS = (174, 25, 379, 1195, 309, 835, 8, 261, 54, 379, 25, 8)


class Passes:
    """The batches of follow streams. Where a test says so, nothing is read until passes of several streams wait."""

    def __init__(self, monkeypatch) -> None:
        self.batches: list[list[TargetPass]] = []
        self._num_awaited = 0
        run, read = TargetReader._run, TargetReader.read

        def noting(reader, batch):
            if batch[0].sequence is not None:
                self.batches.append(batch)
            return run(reader, batch)

        def waiting(reader, passes, max_tokens):
            if sum(each.sequence is not None for each in passes) < self._num_awaited:
                time.sleep(0.001)
                return []
            self._num_awaited = 0
            return read(reader, passes, max_tokens)

        monkeypatch.setattr(TargetReader, "_run", noting)
        monkeypatch.setattr(TargetReader, "read", waiting)

    def await_together(self, count: int) -> None:
        """Nothing is read until passes of so many streams wait."""
        self._num_awaited = count

    @property
    def num_tokens(self) -> list[int]:
        """How many tokens each pass reads that the stream has not had before."""
        return [len(each.tokens.ids) - each.tokens.first_step for batch in self.batches for each in batch]


@pytest.fixture
def passes(monkeypatch) -> Passes:
    return Passes(monkeypatch)


def catch_up(drivers: list[FollowDriver], add) -> None:
    """Streams whose sources and targets change, at the same time as far as `add` lets them."""
    for driver in drivers:
        driver.add_source("Where did you buy")
    add(IDS)
    for driver in drivers:
        driver.take_back(7)
    add(IDS[:9])
    for number, driver in enumerate(drivers):
        driver.add_source(f" that old book {number}?")
    add(IDS[3:5])
    add(IDS[2:3])


def add_together(drivers: list[FollowDriver], ids: tuple[int, ...], passes: Passes) -> None:
    counts = [len(driver.ids) + len(ids) for driver in drivers]
    if len(ids) > 8:  # fewer tokens are read one by one, and those of streams with rollout always
        passes.await_together(sum(number % 3 != 1 for number in range(len(drivers))))
    for driver in drivers:
        driver.send(target=token_ids(*ids))
    for driver, count in zip(drivers, counts, strict=True):
        driver.wait_for_steps(count)


def add_one_by_one(drivers: list[FollowDriver], ids: tuple[int, ...]) -> None:
    for driver in drivers:
        for id_ in ids:
            driver.add_ids(id_)


def options_by_row(number: int) -> dict:
    fields = options_of(number)
    fields["capture"].row = attention.ROW_READING if number % 4 > 1 else attention.ROW_PREDICTING
    return {**fields, "policy": align_att(words=1)} if number % 2 else fields


def assert_same_streams(drivers: list[FollowDriver], others: list[FollowDriver]) -> None:
    for driver, other in zip(drivers, others, strict=True):
        for step, same in zip(driver.steps, other.steps, strict=True):
            assert_same_step(step, same)
            assert step.decision == same.decision


def test_streams_that_catch_up_together_get_what_single_tokens_get(bundled, passes):
    """Their passes are shared, also beside a decoder, which writes what it writes alone."""
    message = request(SENTENCE, [CROSS], scores=[attention.SCORE_PROBABILITY])
    with serving(bundled, limits=EngineConfig(max_running=16)) as address, stub(address) as service:
        singles = [FollowDriver(service, **options_by_row(number)) for number in range(6)]
        catch_up(singles, lambda ids: add_one_by_one(singles, ids))
        alone = steps_of(list(service.Attribute(message, timeout=60)))
        assert all(count < 2 for count in passes.num_tokens)
        del passes.batches[:]
        drivers = [FollowDriver(service, **options_by_row(number)) for number in range(6)]
        with ThreadPoolExecutor() as pool:
            beside = pool.submit(lambda: [steps_of(list(service.Attribute(message, timeout=60))) for _ in range(8)])
            catch_up(drivers, lambda ids: add_together(drivers, ids, passes))
            decoded = beside.result()
        for driver in (*singles, *drivers):
            driver.finish()
    assert_same_streams(drivers, singles)
    assert [len(batch) for batch in passes.batches].count(4) == 2
    assert sum(passes.num_tokens) >= 80
    for steps in decoded:
        assert [step.token for step in steps] == [step.token for step in alone]
        assert [step.cross.values for step in steps] == [step.cross.values for step in alone]


def test_a_stream_that_fails_in_a_batch_fails_alone(bundled, monkeypatch):
    run = TargetReader._run

    def failing(reader, batch):
        if any(each.request.source.text.endswith("1?") for each in batch):
            raise RuntimeError("no such source")
        return run(reader, batch)

    monkeypatch.setattr(TargetReader, "_run", failing)
    with serving(bundled) as address, stub(address) as service:
        drivers = [FollowDriver(service) for _ in range(3)]
        for number, driver in enumerate(drivers):
            driver.add_source(f"Where did you buy it {number}?")
        for driver in drivers:
            driver.send(target=token_ids(*IDS))
        with pytest.raises(grpc.RpcError) as caught:
            drivers[1].wait_for_steps(len(IDS))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        for driver in (drivers[0], drivers[2]):
            driver.wait_for_steps(len(IDS))
            driver.finish()
            assert_as_given(service, driver.stretches)


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


def test_a_source_whose_pass_is_not_needed_any_more_is_read_all_the_same(bundled, monkeypatch):
    """The pass over a grown source is put off, and the client takes back all tokens that it was for."""
    read, is_put_off = TargetReader.read, threading.Event()

    def perhaps(reader, passes, max_tokens):
        return [] if is_put_off.is_set() else read(reader, passes, max_tokens)

    monkeypatch.setattr(TargetReader, "read", perhaps)
    with serving(bundled) as address, stub(address) as service:
        driver = FollowDriver(service)
        driver.add_source("Where did you")
        driver.add_text("Wo hast du")
        is_put_off.set()
        driver.add_source(" buy that?")
        driver.take_back(len(driver.ids))
        is_put_off.clear()
        driver.add_ids(driver.stretches[-2].ids[0])
        driver.add_ids(driver.stretches[-3].ids[1])
        driver.finish()
        assert_as_given(service, driver.stretches)
