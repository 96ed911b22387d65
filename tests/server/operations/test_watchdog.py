"""An engine that stalls says so to health checks and in the log, and serves again when it goes on."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import request, serving, stub, wait_until
from hostile_clients import reason_of_aio
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.operations.watchdog import RESTING, Phase, Watchdog
from sidelight.server.runner.decode_step import DecodeStep
from sidelight.server.runner.prefill import Prefill
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SENTENCE = "My grandmother is still vigorous at 82 years old."
TIMEOUT = 0.3


def long_request(request_id: str, steps: int = 100):
    decoding = text.Decoding(ignore_eos=True, max_new_tokens=steps)
    return request(SENTENCE, decoding=decoding, request_id=request_id)


class Gate:
    """Holds the engine's thread at calls of one method while it is closed."""

    def __init__(self, monkeypatch, owner: type, name: str) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self.has_arrived = threading.Event()
        method = getattr(owner, name)

        def wait(*args):
            if not self._is_open.is_set():
                self.has_arrived.set()
                assert self._is_open.wait(60)
            return method(*args)

        monkeypatch.setattr(owner, name, wait)

    def close(self) -> None:
        self.has_arrived.clear()
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (DecodeStep, "run", "a decode step of 2 requests (a, b), at wait (threading.py:"),
        (Prefill, "read_sources", "reading the sources of 1 requests (a), at wait (threading.py:"),
    ],
)
def test_a_stall_is_told_and_so_is_its_end(bundled, monkeypatch, caplog, owner, name, words):
    gate = Gate(monkeypatch, owner, name)
    caplog.set_level(logging.WARNING, "sidelight")
    with (
        serving(bundled, limits=EngineConfig(step_timeout=TIMEOUT)) as address,
        stub(address) as service,
        grpc.insecure_channel(address) as channel,
    ):
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=each), timeout=120)
            for each in ("", bundled.name)
        ]
        list(service.Attribute(long_request("first")))  # beyond the first rounds
        ids = ["a", "b"] if owner is DecodeStep else []
        calls = [service.Attribute(long_request(each, 200)) for each in ids]
        for call in calls:
            next(call)  # Started comes with the first step
        gate.close()
        if not calls:
            calls = [service.Attribute(long_request("a"))]
        assert [next(watch).status for watch in watches] == [SERVING] * 2
        assert [next(watch).status for watch in watches] == [NOT_SERVING] * 2
        gate.open()
        assert [next(watch).status for watch in watches] == [SERVING] * 2
        assert all(list(call)[-1].HasField("finished") for call in calls)
    stalled, over = [record.getMessage() for record in caplog.records]
    assert words in stalled
    assert "tatoeba-en-de" in stalled
    assert "goes on after" in over


def test_neither_first_steps_nor_rest_count_as_stalls(bundled, monkeypatch, caplog):
    gate = Gate(monkeypatch, DecodeStep, "run")
    gate.close()
    with serving(bundled, limits=EngineConfig(step_timeout=TIMEOUT)) as address, stub(address) as service:
        call = service.Attribute(long_request("first"))
        assert gate.has_arrived.wait(60)
        time.sleep(3 * TIMEOUT)
        gate.open()
        list(call)
        time.sleep(3 * TIMEOUT)
        list(service.Attribute(long_request("second")))
    assert not caplog.records


async def read_all(call) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_step_without_an_end_does_not_keep_the_server_from_its_end(bundled, monkeypatch):
    gate = Gate(monkeypatch, DecodeStep, "run")
    server = Server([bundled], "127.0.0.1:0")
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        gate.close()
        call = services.AttributionServiceStub(channel).Attribute(long_request("a"))
        reading = asyncio.ensure_future(read_all(call))
        assert await asyncio.to_thread(gate.has_arrived.wait, 60)
        try:
            await asyncio.wait_for(server.stop(0.2), 60)
            assert server.is_running
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reading
            assert (raised.value.code(), reason_of_aio(raised.value)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        finally:
            gate.open()
    await asyncio.to_thread(wait_until, lambda: not server.is_running)


def test_only_what_stays_the_same_counts():
    changes: list[bool] = []
    watchdog = Watchdog("m", 0.02, changes.append)
    watchdog.num_rounds = 1000

    def look(activity) -> None:
        watchdog.activity = activity
        watchdog.look(None)

    for _ in range(2):
        look(RESTING)
        time.sleep(0.03)
    for _ in range(3):  # new work of the same kind each time
        look((Phase.DECODING, []))
        time.sleep(0.03)
    assert not changes
    same = (Phase.DECODING, [])
    for _ in range(3):
        look(same)
        time.sleep(0.03)
    assert changes == [False]
    look((Phase.DECODING, []))
    assert changes == [False, True]
