"""Which request is next: no request waits for many others whose readers take nothing."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from harness import CROSS, DECODER_SELF, request, serving, steps_of, stub, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_http2 import RawConnection
from sidelight.server.api import calls as calls_module
from sidelight.server.engine import engine_core, output_queue, preemption, scheduler, waiting_queue
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.engine.request_state import RequestState
from sidelight.server.engine.waiting_queue import HeldBack, WaitingQueue
from sidelight.server.request import DecodingParams
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.runner.unbatched_runner import UnbatchedRunner
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."
ATTRIBUTE = "/sidelight.v1.AttributionService/Attribute"
BURST = 60
# Bytes of a stream that a reader takes: nothing, or the first event and little more.
WINDOWS = {"nothing": 0, "little": 4096}


def readers(*kinds: str, quick: list[str]) -> list[Any]:
    """Kinds of requests, and windows of their readers. The pairs outside of `quick` are slow tests."""
    pairs = {f"{name}-{kind}": (kind, window) for name, window in WINDOWS.items() for kind in kinds}
    return [pytest.param(*pairs[id_], id=id_, marks=() if id_ in quick else pytest.mark.slow) for id_ in pairs]


def given_request(count: int = 30):
    return request(SENTENCE, [CROSS, DECODER_SELF], given=text.Text(text="Großmutter " * count))


def written_request(**fields):
    return request(SENTENCE, [CROSS, DECODER_SELF], decoding=text.Decoding(ignore_eos=True, **fields))


@pytest.fixture
def slow_engine(monkeypatch):
    """The start of a request takes a tenth of a second, and an output queue is full after a step or two."""
    target_outputs, add = engine_core.target_outputs, ModelRunner.add

    def slow_outputs(*args):
        time.sleep(0.1)
        yield from target_outputs(*args)

    def slow_add(runner, requests, **options):
        time.sleep(0.1 * len(requests))
        return add(runner, requests, **options)

    monkeypatch.setattr(engine_core, "target_outputs", slow_outputs)
    monkeypatch.setattr(ModelRunner, "add", slow_add)
    monkeypatch.setattr(output_queue, "CAPACITY", 8192)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.05,))
    for module in (scheduler, preemption):
        monkeypatch.setattr(module, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(calls_module, "_SLOW_READER_SECONDS", 0.05)
    monkeypatch.setattr(calls_module, "_CHECK_INTERVAL", 0.05)


def burst(raw: RawConnection, kind: str, count: int = BURST) -> None:
    """Requests whose readers take no more than their windows."""
    raw.open_window(0, 1 << 24)  # of the connection: no stream takes another's room
    messages = {"given": [given_request()], "written": [written_request(max_new_tokens=250)]}
    messages["mixed"] = [*messages["given"], *messages["written"]]
    for number in range(count):
        raw.call(ATTRIBUTE, messages[kind][number % len(messages[kind])].SerializeToString())


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.parametrize(
    ("kind", "window"), readers("given", "written", "mixed", quick=["nothing-given", "little-mixed"])
)
def test_a_request_does_not_wait_until_stalled_ones_have_begun(bundled, engines, kind, window):
    """From the connection of the stalled readers, and from another one; of both kinds of targets."""
    small = [request("A dog.", decoding=text.Decoding(max_new_tokens=4)), request("A dog.")]
    small[1].given.text = "Ein Hund."
    limits = EngineConfig(max_running=2)
    with serving(bundled, limits=limits) as address, stub(address) as service, RawConnection(address, window) as raw:
        burst(raw, kind)
        wait_until(lambda: len(engines[0]._admission._states) == BURST)
        for message in small:
            finished = list(service.Attribute(message, timeout=60))[-1].finished
            stream = raw.call(ATTRIBUTE, message.SerializeToString())
            raw.open_window(stream, 1 << 20)
            assert finished.text.encode() in raw.frames_until_closed(stream)
        # In the order in which they came, all would have begun.
        assert len(engines[0]._admission._waiting) > BURST // 4


@pytest.mark.usefixtures("slow_engine")
@pytest.mark.parametrize(("kind", "window"), readers("given", "written", quick=["little-given", "nothing-written"]))
def test_held_back_requests_lose_nothing(bundled, engines, kind, window):
    """A reader that reads on gets what it would have got, its first event once."""
    message = given_request() if kind == "given" else written_request(max_new_tokens=30)
    with serving(bundled, limits=EngineConfig(max_running=2)) as address, stub(address) as service:
        alone = list(service.Attribute(message, timeout=60))
        with RawConnection(address, window) as raw, ThreadPoolExecutor(8) as pool:
            burst(raw, kind, 20)
            wait_until(lambda: len(engines[0]._admission._states) == 20)
            calls = [pool.submit(lambda: list(service.Attribute(message, timeout=60))) for _ in range(8)]
            for call in calls:
                responses = call.result()
                assert [each.WhichOneof("event") for each in responses].count("started") == 1
                assert responses[0].HasField("started")
                assert [step.token for step in steps_of(responses)] == [step.token for step in steps_of(alone)]
            last = raw.call(ATTRIBUTE, message.SerializeToString())
            wait_until(lambda: sum(state.is_announced for state in engines[0]._admission._states) > 1)
            raw.open_window(last, 1 << 22)
            assert alone[-1].finished.text.encode() in raw.frames_until_closed(last)


@pytest.mark.usefixtures("slow_engine")
def test_no_work_is_done_for_who_takes_nothing_while_others_read(bundled, engines):
    limits = EngineConfig(max_running=2)
    with serving(bundled, limits=limits) as address, stub(address) as service, RawConnection(address) as raw:
        burst(raw, "given")
        wait_until(lambda: len(engines[0]._admission._states) == BURST)
        wait_until(lambda: all(map(engines[0]._admission._waiting.has_stalled, list(engines[0]._admission._waiting))))
        before = len(engines[0]._admission._waiting)
        message = request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=250))
        steps = steps_of(list(service.Attribute(message, timeout=60)))
        assert len(steps) == 250
        # Some begin before the request arrives, and when it is done.
        assert len(engines[0]._admission._waiting) > before // 2


@pytest.mark.usefixtures("slow_engine")
def test_a_queue_full_of_stalled_readers_keeps_nobody_out(bundled, engines):
    """The newest of them gives its place away, with the status of a request that comes too late."""
    limits = EngineConfig(max_running=1, max_waiting=40)
    with serving(bundled, limits=limits) as address, stub(address) as service, RawConnection(address) as raw:
        waiting = engines[0]._admission._waiting
        for _ in range(2):  # the second takes places of the first
            burst(raw, "given", 50)
            wait_until(lambda: sum(map(waiting.has_stalled, list(waiting))) > 20)
        wait_until(lambda: len(waiting) >= 39 and sum(map(waiting.has_stalled, list(waiting))) > 20)
        for _ in range(5):
            assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")


@pytest.mark.usefixtures("slow_engine")
def test_a_queue_full_of_one_clients_requests_keeps_no_other_client_out(bundled, engines):
    """The newest requests of the client with the most give their places away."""
    limits = EngineConfig(max_running=1, max_waiting=12)
    with serving(bundled, limits=limits) as address, stub(address) as many, stub(address) as one:
        pool = ThreadPoolExecutor(30)
        codes = [pool.submit(code_of, many.Attribute(given_request(), timeout=60)) for _ in range(30)]
        wait_until(lambda: len(engines[0]._admission._waiting) == 12)
        for _ in range(3):
            assert code_of(one.Attribute(request("A dog."), timeout=60)) is grpc.StatusCode.OK
        pool.shutdown()
    assert {code.result() for code in codes} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def code_of(call: Any) -> grpc.StatusCode:
    """Reads a call to its end."""
    with contextlib.suppress(grpc.RpcError):
        list(call)
    return call.code()


@pytest.mark.slow
def test_given_targets_leave_half_of_the_time_to_what_is_written(bundled, engines, monkeypatch):
    """Many large ones whose readers read: each takes a tenth of a second, between two steps that take milliseconds."""
    read_targets, decode = ModelRunner.read_targets, ModelRunner.decode

    def slow(runner, passes, max_tokens):
        time.sleep(0.1)
        return read_targets(runner, passes[:1], max_tokens)

    def slow_decode(*args):
        time.sleep(0.005)
        return decode(*args)

    monkeypatch.setattr(ModelRunner, "read_targets", slow)
    monkeypatch.setattr(ModelRunner, "decode", slow_decode)
    with serving(bundled, limits=EngineConfig(max_running=16)) as address, stub(address) as service:
        calls = [service.Attribute(given_request(1), timeout=120) for _ in range(200)]
        wait_until(lambda: len(engines[0]._admission._states) > 150)
        monkeypatch.setattr(engines[0]._admission._waiting, "next", lambda **_: first_written(engines[0]))
        written = request("A dog.", decoding=text.Decoding(ignore_eos=True, max_new_tokens=250))
        assert list(service.Attribute(written, timeout=60))[-1].HasField("finished")
        # Some given targets between each two steps, and all would be done before.
        assert len(engines[0]._admission._states) > 30
        for call in calls:
            call.cancel()


def first_written(engine: Engine) -> RequestState | None:
    """What waits first, as if what is written had come before given targets."""
    waiting = list(engine._admission._waiting)
    written = (state for state in waiting if isinstance(state.request.target, DecodingParams))
    return next(written, waiting[0] if waiting else None)


@pytest.mark.slow
def test_sequences_of_a_model_without_slots_take_turns(zoo, monkeypatch):
    """Each forward pass takes long, and no request waits for the end of another."""
    turns: list[str] = []
    decode = UnbatchedRunner._decode

    def slowly(runner, sequence):
        turns.append(sequence.request.request_id)
        time.sleep(0.03)
        return decode(runner, sequence)

    monkeypatch.setattr(UnbatchedRunner, "_decode", slowly)
    decoding = text.Decoding(max_new_tokens=20, ignore_eos=True)
    with serving(zoo("fsmt")) as address, stub(address) as service:
        calls = [
            service.Attribute(request(SENTENCE, request_id=name, decoding=decoding), timeout=60) for name in "abcd"
        ]
        for call in calls:
            assert len(steps_of(list(call))) == 20
    first_end = min(len(turns) - turns[::-1].index(name) for name in "abcd")
    assert all(turns[:first_end].count(name) > 5 for name in "abcd")


# ---- the rule --------------------------------------------------------------------------------------------------------

FEW = waiting_queue._MAX_STALLED


def begin_all(queue: WaitingQueue[int], *, is_idle: bool = True) -> list[int]:
    begun = []
    while (request := queue.next(is_idle=is_idle, has_time=True)) is not None:
        queue.begin(request)
        begun.append(request)
    return begun


requests = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 5)), max_size=40)


def take_turns(entries: list[tuple[str, int]]) -> list[int]:
    """Returns the numbers of all requests: the first of each client, in the order of arrival, then the second."""
    clients = dict.fromkeys(client for client, _ in entries)
    places: list[tuple[int, int, int]] = []
    for turn, client in enumerate(clients):
        numbers = [number for number, entry in enumerate(entries) if entry[0] == client]
        places += [(place, turn, number) for place, number in enumerate(numbers)]
    return [number for _, _, number in sorted(places)]


@settings(max_examples=60, deadline=None)
@given(requests)
def test_clients_whose_readers_read_take_turns(entries):
    queue: WaitingQueue[int] = WaitingQueue()
    queue.hold_back(HeldBack([], {"a": FEW, "b": 30}, {"b": 50}))  # a proxy may have as many
    for number, (client, size) in enumerate(entries):
        queue.add(number, client, size)
    assert list(queue.in_turns()) == take_turns(entries)
    assert begin_all(queue) == take_turns(entries)
    assert not queue.count("a")


@pytest.mark.parametrize("held_back", [HeldBack(), HeldBack([5], {"x": FEW + 1})])
def test_a_client_with_one_request_waits_for_one_request_of_each_other(held_back):
    """Also where many requests of another client arrive meanwhile, and when the client comes again."""
    queue: WaitingQueue[int] = WaitingQueue()
    queue.hold_back(held_back)
    for number in range(1000):
        queue.add(number, "many", 1)
    for newcomer in (-1, -2, -3):
        queue.add(newcomer, "one", 1)
        begun = []
        for _ in range(2):
            request = queue.next(is_idle=False, has_time=True)
            assert request is not None
            queue.begin(request)
            begun.append(request)
            queue.add(2000 - 10 * newcomer + len(begun), "many", 1)
        assert newcomer in begun


@settings(max_examples=60, deadline=None)
@given(requests, st.sets(st.integers(0, 39)), st.sets(st.sampled_from("abc")), st.booleans())
def test_all_are_begun_and_none_waits_for_ever(entries, stalled, clients, are_many):
    queue: WaitingQueue[int] = WaitingQueue()
    of = dict.fromkeys(clients, FEW + 1) | (dict.fromkeys("xyz", FEW) if are_many else {})
    held_back = HeldBack(stalled, of)
    assert (held_back.clients, held_back.others) == (clients, are_many)
    queue.hold_back(held_back)
    for number, (client, size) in enumerate(entries):
        queue.add(number, client, size)
    numbers = range(len(entries))
    begun = begin_all(queue, is_idle=False)
    assert set(begun) == set(numbers) - stalled  # the others only when the engine has nothing else to do
    assert begin_all(queue) == sorted(stalled & set(numbers))
    last = [number for number in begun if entries[number][0] in clients]
    if not are_many:
        for client in set("abc") - clients:
            own = [number for number in begun if entries[number][0] == client]
            assert own == sorted(own)
    # Of the requests that come after others, the oldest starts second at the latest, and so on.
    for place, number in enumerate(last):
        assert place <= 2 * sum(other <= number for other in last)


def test_a_client_that_is_held_back_has_a_share():
    """Of a queue that others fill again and again."""
    queue: WaitingQueue[int] = WaitingQueue()
    queue.hold_back(HeldBack([], {"a": FEW + 1}))
    queue.add(-1, "a", 1)
    for number in range(waiting_queue._SHARE + 1):
        queue.add(number, "b", 1)
        request = queue.next(is_idle=False, has_time=True)
        assert request is not None
        queue.begin(request)
        if request == -1:
            return
    raise AssertionError("it is not begun")


def test_nobody_waits_for_a_share_that_is_put_off():
    queue: WaitingQueue[int] = WaitingQueue()
    queue.hold_back(HeldBack([100], {"a": FEW + 1}))
    queue.add(-1, "a", 1)
    queue.add(100, "b", 1)
    for number in range(3 * waiting_queue._SHARE):
        queue.add(number, "b", 1)
        assert queue.next(is_idle=False, has_time=False) == number
        queue.begin(number)
    assert queue.next(is_idle=True, has_time=False) is None
    queue.add(50, "b", 1)
    assert queue.next(is_idle=False, has_time=True) == -1


def test_the_smallest_and_the_oldest_in_turn():
    queue: WaitingQueue[str] = WaitingQueue()
    queue.hold_back(HeldBack([], {"a": FEW + 1}))
    for name, size in {"first": 500, "second": 500, "small": 20, "third": 500, "last": 500}.items():
        queue.add(name, "a", size)
    begun = []
    while (request := queue.next(is_idle=False, has_time=True)) is not None:
        queue.begin(request)
        begun.append(request)
    assert begun == ["small", "first", "last", "second", "third"]


def test_who_gives_its_place_away():
    queue: WaitingQueue[str] = WaitingQueue()
    queue.add("reads", "a", 1)
    assert queue.newest_held_back("b") is None
    queue.add("stalls", "a", 1)
    queue.add("stalls too", "a", 1)
    queue.add("reads too", "a", 1)
    queue.hold_back(HeldBack(["stalls", "stalls too"]))
    assert queue.newest_held_back("a") == "stalls too"
    queue.hold_back(HeldBack([], {"a": FEW + 1}))
    assert queue.newest_held_back("b") == "reads too"
    assert queue.newest_held_back("a") is None


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 2)), max_size=60), st.integers(1, 12))
def test_a_full_queue_is_shared_among_clients(newcomers, capacity):
    """A newcomer is kept out only where no client has two requests more. Then clients differ by one at most."""
    queue: WaitingQueue[int] = WaitingQueue()
    client_of: dict[int, tuple[str, bool]] = {}
    for number, (client, has_recordings, num_reserved) in enumerate(newcomers):
        if len(client_of) == capacity:
            counts = Counter(other for other, has in client_of.values() if has or not has_recordings)
            most = max(counts.values(), default=0)
            evicted = queue.newest_of_largest(client, num_reserved, has_recordings=has_recordings)
            if most <= counts[client] + num_reserved + 1:
                assert evicted is None
                continue
            assert evicted is not None
            largest = client_of[evicted][0]
            assert counts[largest] == most
            same = [
                each for each, (other, has) in client_of.items() if other == largest and (has or not has_recordings)
            ]
            assert evicted == max(same)
            queue.remove(evicted)
            del client_of[evicted]
        queue.add(number, client, 1, int(has_recordings))
        client_of[number] = client, has_recordings
