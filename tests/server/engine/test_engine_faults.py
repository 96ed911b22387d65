"""Whatever goes wrong in the engine, no request waits for ever, and a server that can serve no more says so."""

from __future__ import annotations

import argparse
import ctypes
import functools
import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from follow_driver import details_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub, wait_until
from hostile_clients import retry_delay_of
from memory_lack import MemoryLack
from raw_http2 import RawConnection
from sidelight.server.api.transport.addresses import Address
from sidelight.server.engine import engine as engine_module
from sidelight.server.engine import engine_core, output_queue
from sidelight.server.engine.admission import AdmissionQueue
from sidelight.server.engine.batching_delay import BatchingDelay
from sidelight.server.engine.engine import Engine, EngineConfig
from sidelight.server.engine.engine_core import EngineCore, _PendingOutputs
from sidelight.server.engine.given_targets import GivenTargets
from sidelight.server.engine.output_queue import OutputQueue
from sidelight.server.engine.outputs.output_builder import OutputBuilder
from sidelight.server.engine.preemption import Preemption
from sidelight.server.engine.scheduler import Scheduler
from sidelight.server.engine.started_requests import StartedRequests
from sidelight.server.engine.time_share import TimeShare
from sidelight.server.engine.waiting_queue import WaitingQueue
from sidelight.server.entrypoints import loading
from sidelight.server.entrypoints import serve as command
from sidelight.server.operations import Security
from sidelight.server.runner.beams import BeamStep
from sidelight.server.runner.decode_step import DecodeStep
from sidelight.server.runner.model_runner import ModelRunner
from sidelight.server.runner.prefill import Prefill
from sidelight.server.runner.slot_allocator import SlotAllocator
from sidelight.server.runner.step_recorder import StepRecorder
from sidelight.server.runner.targets import TargetPass, TargetReader
from sidelight.server.sampling.beam_search import BeamSearch
from sidelight.server.settings import add_flags, read_settings
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def long_request(**fields):
    return request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=250), **fields)


def kill(engine: Engine) -> None:
    """Ends the thread of an engine wherever it is, by something that no handler of faults takes for one."""
    thread = engine._thread
    assert thread.ident is not None
    while thread.is_alive():  # Python may drop what is raised while the thread frees an object
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        engine.wake()
        thread.join(timeout=2)


@pytest.mark.parametrize("timeout", ["2562047H", "2562048H", "99999999H"])
def test_a_deadline_beyond_all_clocks_harms_nobody(bundled, engines, monkeypatch, timeout):
    """2,562,048 hours are what grpc-go sends for its longest duration. The reader pauses, so that the engine waits."""
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    message = long_request(kinds=[CROSS, DECODER_SELF]).SerializeToString()
    with serving(bundled) as address, stub(address) as service, RawConnection(address) as raw:
        raw.call("/sidelight.v1.AttributionService/Attribute", message, timeout=timeout)
        wait_until(lambda: any(state.queue.is_full for state in engines[0]._admission._states))
        time.sleep(0.3)  # until the engine has nothing more to do
        assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")
        wait_until(lambda: [state.queue.is_full for state in engines[0]._admission._states] == [True])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("when", ["at work", "idle"])
def test_a_thread_that_ends_ends_all_that_waits(bundled, engines, when, monkeypatch):
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)  # the running request is not done too early
    with serving(bundled, limits=EngineConfig(max_running=1)) as address, stub(address) as service:
        with grpc.insecure_channel(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == SERVING
            watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=120)
            assert next(watching).status == SERVING
            calls = []
            if when == "at work":
                calls = [service.Attribute(long_request(kinds=[CROSS]), timeout=60) for _ in range(3)]
                wait_until(lambda: len(engines[0]._admission._states) == 3 and engines[0]._core.requests.running)
            kill(engines[0])
            for call in calls:
                with pytest.raises(grpc.RpcError) as raised:
                    list(call)
                assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
                assert "engine" in raised.value.details()
            assert [response.status for response in watching] == [NOT_SERVING]
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SENTENCE), timeout=60))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not engines[0]._admission._states


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_process_whose_engine_has_ended_ends_with_a_code(bundled, engines, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = ["--address", "127.0.0.1:0", "--max-slots", "2", "--max-waiting", "8", "--max-feature-mib", "4"]
    settings = read_settings(parser.parse_args(flags))

    def kill_when_serving() -> None:
        wait_until(lambda: engines and engines[0]._is_ready.is_set())
        time.sleep(0.2)
        kill(engines[0])

    killer = threading.Thread(target=kill_when_serving)
    killer.start()
    try:
        with Address(settings.values.address) as held:
            configs = loading._engine_configs([bundled], settings, [()])
            args = ([bundled], configs, held, Security(), command._Monitoring(), settings.values)
            assert await command._serve(*args) == 1
    finally:
        killer.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "the engine of a model has failed" in capsys.readouterr().err
    taken_on = EngineConfig(2, 8, 0.5, max_feature_bytes=4 * 1024**2, max_unread_bytes=256 * 1024)
    assert engines[0].config == taken_on


def test_a_server_ends_while_its_engine_begins_again(bundled, monkeypatch):
    monkeypatch.setattr(ModelRunner, "add", lambda *_, **__: 1 / 0)
    with serving(bundled) as address, stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(request("A dog."), timeout=60))
    assert raised.value.code() == grpc.StatusCode.INTERNAL


def test_a_waiting_request_that_makes_the_work_fail_each_time_is_ended(bundled, monkeypatch):
    """The engine looks at waiting requests before it starts anything, and would fail there for ever."""
    make_memory = Preemption.make_memory

    def failing(preemption, num_bytes):
        if num_bytes:
            raise RuntimeError("planted")
        return make_memory(preemption, num_bytes)

    monkeypatch.setattr(Preemption, "make_memory", failing)
    with serving(bundled) as address, stub(address) as service:
        with pytest.raises(grpc.RpcError) as raised:  # the only kind that asks for memory
            list(service.Attribute(request(SENTENCE, [ENCODER_SELF]), timeout=60))
        assert raised.value.code() == grpc.StatusCode.INTERNAL
        assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")


def test_an_engine_that_cannot_begin_again_ends(bundled, engines, monkeypatch):
    """Not at once, since memory may come back; and then as one whose thread has ended."""
    num_attempts = 0

    def broken():
        nonlocal num_attempts
        num_attempts += 1
        raise MemoryError

    with serving(bundled) as address, stub(address) as service:
        # Of this engine alone: the worker's shared server has an engine too.
        monkeypatch.setattr(engines[0], "_make_core", broken)
        monkeypatch.setattr(engines[0]._core, "run", lambda *_: 1 / 0)
        with pytest.raises(grpc.RpcError):
            list(service.Attribute(request(SENTENCE), timeout=60))
        engines[0]._thread.join(60)
        assert num_attempts == engine_module._MAX_ATTEMPTS
        with pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SENTENCE), timeout=60))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE


OF_THE_THREAD = [
    EngineCore,
    _PendingOutputs,
    Scheduler,
    StartedRequests,
    Preemption,
    GivenTargets,
    TimeShare,
    BatchingDelay,
    OutputBuilder,
]
FAULTY = {owner: [name for name, value in vars(owner).items() if callable(value)] for owner in OF_THE_THREAD}
FAULTY |= {
    Engine: ["_work", "_make_core", "_restart"],
    AdmissionQueue: [
        "next",
        "begin",
        "has_stalled",
        "pop_expired",
        "late_requests",
        "source_lengths",
        "deadlines",
        "close",
        "started",
    ],
    WaitingQueue: [name for name, value in vars(WaitingQueue).items() if callable(value)],
    OutputQueue: ["put", "end"],
    output_queue: ["_notify_loop"],
    engine_core: [
        "target_outputs",
        "hypothesis_outputs",
        "give_target",
        "make_started",
        "split_encoder_self",
        "notify",
    ],
}
for owner in (
    ModelRunner,
    Prefill,
    DecodeStep,
    BeamStep,
    BeamSearch,
    SlotAllocator,
    StepRecorder,
    TargetPass,
    TargetReader,
):
    FAULTY[owner] = [name for name, value in vars(owner).items() if callable(value)]
NOT_FAULTY = {"__init__", "__iter__", "__len__", "_compile"}


def mixed_request(number: int):
    message = request(SENTENCE, [CROSS, ENCODER_SELF][: 1 + number % 2], scores=[1] * (number % 3 == 0))
    if number % 5 == 0:
        message.given.text = "Meine Großmutter ist rüstig."
    elif number % 5 == 1:
        message.decoding.sampling.seed = number
    elif number % 5 == 2:
        message.decoding.beam.width = 2 + number % 3
    return message


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_faults_at_random_leave_no_request_without_its_end(bundled, engines, monkeypatch, seed):
    """One call of a hundred of the engine's functions fails. Each request ends, one way or another."""
    draw = random.Random(seed)
    is_on = threading.Event()

    def fails(share: float) -> bool:  # in this engine alone: the worker's shared server has an engine too
        return is_on.is_set() and threading.current_thread() is engines[0]._thread and draw.random() < share

    def faulty(function):
        @functools.wraps(function)
        def perhaps(*args, **kwargs):
            if fails(0.01):
                raise RuntimeError("at random")
            result = function(*args, **kwargs)
            if fails(0.002):
                raise RuntimeError("behind")
            return result

        return perhaps

    for owner, names in FAULTY.items():
        for name in names:
            if name not in NOT_FAULTY:
                monkeypatch.setattr(owner, name, faulty(getattr(owner, name)))

    ends: Counter[str] = Counter()
    with serving(bundled, limits=EngineConfig(max_running=4)) as address, stub(address) as service:

        def one(number: int) -> str:
            try:
                list(service.Attribute(mixed_request(number), timeout=60))
            except grpc.RpcError as error:
                return error.code().name
            return "finished"

        is_on.set()
        with ThreadPoolExecutor(8) as pool:
            ends.update(pool.map(one, range(150)))
        is_on.clear()
        # Five faults in a row end what waits, and the last of the five may have come just now.
        wait_until(lambda: one(3) == "finished")
    assert set(ends) <= {"finished", "INTERNAL"}, ends
    assert ends["INTERNAL"]


@pytest.mark.parametrize("kind", ["decoded", "given", "a long prompt"])
def test_memory_that_does_not_do_is_told_alike(bundled, monkeypatch, kind):
    def none(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    message = request(SENTENCE)
    if kind == "given":
        for owner, name in ((TargetPass, "decode"), (TargetReader, "_run")):
            monkeypatch.setattr(owner, name, none)
        message.given.text = "Meine Großmutter"
    elif kind == "decoded":
        monkeypatch.setattr(DecodeStep, "run", none)
    else:
        monkeypatch.setattr(ModelRunner, "prefill", none)
        message.prefix.text = "Meine Großmutter ist"
    with serving(bundled) as address, stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(raised.value)[1] == "OUT_OF_MEMORY"
    assert retry_delay_of(raised.value) > 0  # others may end, and free theirs


def answer(service, number: int) -> tuple[str, list[int]]:
    """How a request ends, and the tokens that its client gets until then."""
    ids: list[int] = []
    try:
        for response in service.Attribute(mixed_request(number), timeout=60):
            ids += [step.token.id for step in response.steps.steps]
    except grpc.RpcError as error:
        return error.code().name, ids
    return "finished", ids


def test_memory_that_lacks_at_random_changes_no_tokens(bundled, engines, monkeypatch):
    """One of 500 operations of a runner finds no memory, in all that requests of all kinds ask for."""
    draw = random.Random(7)
    lacks: list[bool] = []
    is_on = threading.Event()

    def lacking(function):
        @functools.wraps(function)
        def perhaps(*args, **kwargs):
            if not is_on.is_set() or threading.current_thread() is not engines[0]._thread:
                return function(*args, **kwargs)
            with MemoryLack(lambda _: (lacks.append(draw.random() < 0.002), lacks[-1])[1]):
                return function(*args, **kwargs)

        return perhaps

    for owner, names in {
        ModelRunner: ("add", "decode", "prefill", "preempt", "resume", "read_targets"),
        TargetPass: ("decode",),
    }.items():
        for name in names:
            monkeypatch.setattr(owner, name, lacking(getattr(owner, name)))
    with serving(bundled, limits=EngineConfig(max_running=8)) as address, stub(address) as service:
        expected = {number: answer(service, number) for number in range(15)}
        is_on.set()
        with ThreadPoolExecutor(8) as pool:
            answers = [*pool.map(functools.partial(answer, service), range(15))]
        is_on.clear()
        for number, (end, ids) in enumerate(answers):
            assert ids == expected[number][1][: len(ids)]
            assert end in ("finished", "RESOURCE_EXHAUSTED")
            assert (end == "finished") == (len(ids) == len(expected[number][1]))
        assert {end for end, _ in expected.values()} == {"finished"}
        wait_until(lambda: not engines[0]._admission._states)
        assert engines[0]._core.requests.runner.num_free_slots == 8
    ends = Counter(end for end, _ in answers)
    assert ends["finished"]
    assert ends["RESOURCE_EXHAUSTED"]
    assert any(lacks)
