"""Steps are live, calls are independent, and a call that ends early costs nothing more."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import random
import threading

import grpc
import numpy as np
import pytest
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub
from sidelight.server.engine import output_queue
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.engine_core import EngineCore
from sidelight.server.engine.started_requests import StartedRequests
from sidelight.server.models.loaded_model import LoadedModel
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."


class Gate:
    """Lets the model do only so many forward passes until it is opened further."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, passes: int) -> None:
        self._allowed = threading.Semaphore(passes)
        self.passed = 0
        step = type(loaded.backend).decode

        def gated(layout, *args):
            assert self._allowed.acquire(timeout=60)
            self.passed += 1
            return step(layout, *args)

        monkeypatch.setattr(type(loaded.backend), "decode", gated)

    def allow(self, passes: int) -> None:
        self._allowed.release(passes)


def test_each_step_arrives_before_the_next_is_decoded(bundled, monkeypatch):
    """By order, not by time: the next forward pass is forbidden until the client has the step before it."""
    gate = Gate(monkeypatch, bundled, 1)
    with serving(bundled) as address, stub(address) as service:
        seen = 0
        for response in service.Attribute(request(SENTENCE), timeout=60):
            for step in response.steps.steps:
                assert step.index == seen
                assert gate.passed == seen + 1
                seen += 1
                gate.allow(1)
        assert seen == gate.passed > 5


def long_request(**fields):
    return request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=250), **fields)


def first_steps(call):
    for response in call:
        if response.HasField("steps"):
            return list(response.steps.steps)
    raise AssertionError("the stream ended")


@pytest.fixture
def abandoned(monkeypatch) -> threading.Semaphore:
    """Counts the streams whose readers have gone."""
    count = threading.Semaphore(0)
    cancel = output_queue.OutputQueue.cancel

    def counting(queue):
        cancel(queue)
        count.release()

    monkeypatch.setattr(output_queue.OutputQueue, "cancel", counting)
    return count


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_call_that_ends_early_stops_decoding_within_one_step(bundled, monkeypatch, abandoned, how):
    gate = Gate(monkeypatch, bundled, 1)
    with serving(bundled) as address, stub(address) as service:
        call = service.Attribute(long_request(), timeout=2 if how == "deadline" else 60)
        first_steps(call)
        if how == "cancel":
            call.cancel()
        with pytest.raises(grpc.RpcError):
            list(call)
        assert abandoned.acquire(timeout=60)
        assert gate.passed == 1
        gate.allow(1000)
        other = list(service.Attribute(request(SENTENCE), timeout=60))
        # One pass was waiting at the gate when the call ended. Had the job gone on, it would have taken turns with the
        # other request, and made as many passes again.
        steps = sum(len(response.steps.steps) for response in other)
        assert gate.passed <= 1 + 1 + steps


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(bundled, monkeypatch):
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    everything = {"kinds": [CROSS, DECODER_SELF]}
    with serving(bundled) as address, stub(address) as service:
        slow = service.Attribute(long_request(**everything), timeout=120)
        first_steps(slow)
        for _ in range(3):
            assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")
        rest = [step.index for response in slow for step in response.steps.steps]
        assert rest == list(range(250 - len(rest), 250))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["written", "given"])
def test_slow_readers_give_their_slots_to_waiting_requests(bundled, monkeypatch, target):
    """More of them than there are places, whatever the others ask for; and they lose nothing."""
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    preempted = []
    preempt = StartedRequests.preempt

    def counting(requests, state):
        preempted.append(state)
        preempt(requests, state)

    monkeypatch.setattr(StartedRequests, "preempt", counting)
    messages = [long_request(kinds=[CROSS, DECODER_SELF], scores=[1]) for _ in range(5)]
    messages[1].decoding.sampling.seed = 3
    messages[2].decoding.repetition_penalty = 1.3
    messages[3].prefix.text = "Meine Großmutter"
    quick = request(SENTENCE)
    if target == "given":
        given = " ".join(["Meine Großmutter ist mit 82 Jahren immer noch rüstig."] * 12)
        messages = [request(SENTENCE, [CROSS, DECODER_SELF], given=text.Text(text=given)) for _ in range(5)]
        quick.given.text = "Meine Großmutter"
    with serving(bundled, limits=EngineConfig(max_running=2)) as address, stub(address) as service:
        alone = [steps_of(list(service.Attribute(message, timeout=60))) for message in messages]
        assert not preempted
        slow = [(call, first_steps(call)) for call in (service.Attribute(each, timeout=120) for each in messages)]
        for _ in range(3):
            assert list(service.Attribute(quick, timeout=60))[-1].HasField("finished")
        slow[4][0].cancel()
        for (call, first), expected in list(zip(slow, alone, strict=True))[:4]:
            steps = [*first, *steps_of(list(call))]
            assert [step.token for step in steps] == [step.token for step in expected]
            for ours, theirs in zip(steps, expected, strict=True):
                for kind in ("cross", "decoder_self"):
                    mine, other = (np.frombuffer(getattr(step, kind).values, "<f4") for step in (ours, theirs))
                    np.testing.assert_allclose(mine, other, atol=1e-5)
        assert preempted
        assert list(service.Attribute(quick, timeout=60))[-1].HasField("finished")


def test_a_fault_of_the_engine_ends_what_runs_and_nothing_else(bundled, monkeypatch):
    decode, faults = EngineCore._decode, iter([True])

    def broken(core):
        if any(state.sequence is not None for state in core.requests.running) and next(faults, False):
            raise ZeroDivisionError("broken")
        return decode(core)

    monkeypatch.setattr(EngineCore, "_decode", broken)
    with serving(bundled) as address, stub(address) as service:
        with pytest.raises(grpc.RpcError) as caught:
            list(service.Attribute(request(SENTENCE), timeout=60))
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "broken" not in caught.value.details()
        assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")


def test_what_waits_is_sent_together_and_in_order(bundled):
    """A given target's steps exist all at once: they come in few messages."""
    given = text.Text(text="Meine Großmutter ist mit 82 Jahren immer noch rüstig.")
    with serving(bundled) as address, stub(address) as service:
        responses = list(service.Attribute(request(SENTENCE, given=given), timeout=60))
    indices = [step.index for response in responses for step in response.steps.steps]
    assert indices == list(range(len(indices)))
    kinds = [response.WhichOneof("event") for response in responses]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"steps"}


SENTENCES = [
    "I don't want to be your friend.",
    "Where is the nearest train station?",
    "Tom has been learning French for three years.",
    SENTENCE,
]


async def test_simultaneous_calls_get_what_each_gets_alone(bundled_server):
    """Many calls at once, some of them cancelled: every other call gets what it gets alone."""
    draw = random.Random(7)
    kinds = [CROSS, DECODER_SELF, ENCODER_SELF]

    def message(number: int):
        sampling = text.Sampling(seed=number, temperature=1.5)
        decoding = text.Decoding(sampling=sampling) if number % 2 else text.Decoding()
        return request(SENTENCES[number % 4], kinds=kinds, decoding=decoding, scores=[1, 3])

    async with grpc.aio.insecure_channel(bundled_server) as channel:
        service = services.AttributionServiceStub(channel)

        async def collect(number: int):
            return [content async for r in service.Attribute(message(number), timeout=120) for content in plain(r)]

        async def give_up(number: int):
            call = service.Attribute(message(number), timeout=120)
            async for _ in call:
                if draw.random() < 0.5:
                    break
            call.cancel()

        alone = [await collect(number) for number in range(8)]
        order = draw.sample(range(16), 16)
        together = await asyncio.gather(*(give_up(n) if n >= 8 else collect(n) for n in order))
        for number, contents in zip(order, together, strict=True):
            if number < 8:
                assert_same(contents, alone[number])


def plain(response):
    """A response's parts without what differs from call to call: ids, and how many steps share a message.

    Each with its numbers apart, which may differ in their last bits: sums are added up in another order in a batch.
    """
    if response.HasField("started"):
        response.started.request_id = ""
        return [(response.started, [])]
    if response.HasField("finished"):
        return [((response.finished.text, response.finished.stop_reason), [])]
    parts = []
    for part in list(response.steps.steps) or [response.encoder_self]:
        numbers = [np.array(part.scores)] if hasattr(part, "scores") else []
        for attention in (part.cross, part.decoder_self) if numbers else (part.attention,):
            numbers.append(np.frombuffer(attention.values, np.float32))
            attention.values = b""
        if hasattr(part, "scores"):
            del part.scores[:]
        parts.append((part, numbers))
    return parts


def assert_same(contents, expected):
    assert [part for part, _ in contents] == [part for part, _ in expected]
    for (_, numbers), (_, theirs) in zip(contents, expected, strict=True):
        for ours, other in zip(numbers, theirs, strict=True):
            np.testing.assert_allclose(ours, other, atol=1e-5, rtol=1e-5)


def test_a_full_queue_refuses_with_a_delay(bundled, monkeypatch):
    gate = Gate(monkeypatch, bundled, 1)
    with serving(bundled, limits=EngineConfig(max_running=1, max_waiting=1)) as address, stub(address) as service:
        first = service.Attribute(request(SENTENCE), timeout=60)
        first_steps(first)
        # Whichever of them comes first waits.
        ended: queue.Queue[grpc.StatusCode] = queue.Queue()
        calls = [service.Attribute(request(SENTENCE), timeout=60) for _ in range(4)]
        for call in calls:
            call.add_done_callback(lambda call: ended.put(call.code()))
        assert {ended.get(timeout=60) for _ in range(3)} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        gate.allow(1000)
        assert list(first)[-1].HasField("finished")
        (waiting,) = (call for call in calls if not call.done() or call.code() == grpc.StatusCode.OK)
        assert list(waiting)[-1].HasField("finished")


def test_a_deadline_counts_in_the_queue_too(bundled, monkeypatch):
    gate = Gate(monkeypatch, bundled, 1)
    with serving(bundled, limits=EngineConfig(max_running=1)) as address, stub(address) as service:
        first = service.Attribute(request(SENTENCE), timeout=60)
        first_steps(first)
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SENTENCE), timeout=0.5))
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        gate.allow(1000)
        assert list(first)[-1].HasField("finished")


def test_stopping_the_server_tells_its_clients_why(bundled):
    with contextlib.ExitStack() as server:
        address = server.enter_context(serving(bundled))
        with stub(address) as service:
            call = service.Attribute(long_request(), timeout=60)
            first_steps(call)
            server.close()
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert raised.value.details() == "the server is shutting down"
