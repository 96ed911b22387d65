"""A server that is stopped ends in time, whichever clients still read, and every client gets the reason."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest
from combinations import slow_except
from follow_driver import event, start, token_ids
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import CROSS, DECODER_SELF, request
from hostile_clients import reason_of_aio, retry_delay_of
from raw_http2 import RawConnection
from sidelight.server.api import grpc_server as server_module
from sidelight.server.api.rpcs import follow as follow_module
from sidelight.server.api.server import Server
from sidelight.server.engine import output_queue
from sidelight.server.engine.engine import EngineConfig
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."
ATTRIBUTE = "/sidelight.v1.AttributionService/Attribute"
NARROW = [("grpc.http2.lookahead_bytes", 16384), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def long_request(steps: int = 250, request_id: str = "", **fields):
    fields["request_id"] = request_id
    return request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=steps), **fields)


async def until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


async def _read_rest(call, responses: list) -> None:
    """Reads what is left of a call into a list."""
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)


async def _rest_of(call) -> list:
    """What is left to read of a call that was begun to be read."""
    responses: list = []
    await _read_rest(call, responses)
    return responses


async def slow_server(model, monkeypatch, seconds: float, max_running: int) -> tuple[Server, str]:
    """A server whose steps take so many seconds more, and its address."""
    step = type(model.backend).decode

    def slow(layout, *args):
        time.sleep(seconds)
        return step(layout, *args)

    monkeypatch.setattr(type(model.backend), "decode", slow)
    server = Server([model], "127.0.0.1:0", EngineConfig(max_running=max_running))
    return server, await server.start()


async def test_nobody_who_only_listens_holds_up_the_end(bundled):
    """Watch, an idle reflection, a reader that has stalled; with a grace in which a test would not end."""
    server = Server([bundled], "127.0.0.1:0", EngineConfig(max_running=2))
    address = await server.start()
    (engine,) = server._engines
    async with grpc.aio.insecure_channel(address) as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == SERVING
        reflecting = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflecting.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await reflecting.read()
        with RawConnection(address) as raw:
            raw.call(ATTRIBUTE, long_request(kinds=[CROSS, DECODER_SELF]).SerializeToString())
            await until(lambda: any(state.queue.is_full for state in engine._admission._states))
            running = services.AttributionServiceStub(channel).Attribute(long_request())
            await running.read()
            await asyncio.wait_for(server.stop(300), 60)
            assert (await _rest_of(running))[-1].HasField("finished")
        assert [response.status for response in await _rest_of(watching)] == [NOT_SERVING]
        assert await watching.code() == grpc.StatusCode.OK


async def test_calls_in_flight_finish_and_new_calls_hear_when_to_try_again(bundled, monkeypatch):
    """Calls of all kinds. A client of Follow goes on to send. Later, connections are closed for new calls."""
    monkeypatch.setattr(server_module, "_NOTICE_SECONDS", 1.0)
    monkeypatch.setattr(follow_module, "_MAX_LAST_PAUSE_SECONDS", 1.5)
    server, address = await slow_server(bundled, monkeypatch, 0.01, 4)
    (engine,) = server._engines
    async with grpc.aio.insecure_channel(address) as channel:
        service, health = services.AttributionServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        one, many, follow = service.Attribute(long_request(150)), service.AttributeMany(), service.Follow()
        cancelled = service.Attribute(long_request(request_id="cancelled"))
        document = pb.AlignRequest(source=text.Text(text="<p>A dog.</p>" * 8))
        document.markup.format = pb.MARKUP_FORMAT_HTML
        align = service.Align(document)
        await many.write(pb.AttributeManyRequest(attribute=long_request(100, request_id="a")))
        await follow.write(start())
        await follow.write(event(source=text.Text(text=SENTENCE)))
        for call in (one, many, follow, cancelled):
            await call.read()
        stopping = asyncio.create_task(server.stop(60))
        await asyncio.sleep(0)
        assert (await health.Check(health_pb2.HealthCheckRequest(service="tatoeba-en-de"))).status == NOT_SERVING
        for refused in (service.Attribute(long_request()).read(), service.ListModels(pb.ListModelsRequest())):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await refused
            assert (raised.value.code(), reason_of_aio(raised.value)) == (UNAVAILABLE, "SHUTTING_DOWN")
            assert retry_delay_of(raised.value) > 0
        assert (await service.CancelAttribution(pb.CancelAttributionRequest(request_id="cancelled"))).cancelled == 1
        for _ in range(3):  # together longer than the pause that the server allows
            await asyncio.sleep(0.6)
            await follow.write(event(target=token_ids(9)))
            assert (await follow.read()).HasField("steps")
        async with grpc.aio.insecure_channel(address, options=NARROW) as late:  # on a connection of its own
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await health_pb2_grpc.HealthStub(late).Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert raised.value.code() == UNAVAILABLE
        await follow.done_writing()
        assert (await _rest_of(follow))[-1].HasField("finished")
        assert (await _rest_of(one))[-1].HasField("finished")
        assert (await align).marked_target_text == "<p>Ein Hund.</p>" * 8
        last: list[pb.AttributeManyResponse] = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:  # which tells the client to open another stream
            await _read_rest(many, last)
        assert reason_of_aio(raised.value) == "SHUTTING_DOWN"
        assert [*last, *last[-1].batch.responses][-1].response.HasField("finished")
        await asyncio.wait_for(stopping, 60)
        assert engine._core.requests.runner.num_free_slots == 4


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False], ids=["by what others took", "where nothing is known"])
async def test_what_cannot_be_served_in_time_is_refused_at_once(bundled, monkeypatch, known):
    """Waiting requests that would not finish in time are refused at once, while other requests still run."""
    server, address = await slow_server(bundled, monkeypatch, 0.02, 1)
    (engine,) = server._engines
    async with grpc.aio.insecure_channel(address) as channel:
        service = services.AttributionServiceStub(channel)
        ended: list[int] = []

        async def one(number: int) -> None:
            try:
                async for _ in service.Attribute(long_request(20), timeout=60):
                    pass
            finally:
                ended.append(number)

        if known:
            await one(-1)
            ended.clear()
        calls = [asyncio.create_task(one(0))]
        await until(lambda: engine._core.requests.running)
        calls += [asyncio.create_task(one(number)) for number in range(1, 40)]
        await until(lambda: len(engine._admission._states) == 40)
        await asyncio.wait_for(server.stop(4), 60)
        results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, grpc.aio.AioRpcError)]
    assert all(error.code() == grpc.StatusCode.UNAVAILABLE and retry_delay_of(error) > 0 for error in refused)
    served = [number for number, result in enumerate(results) if result is None]
    assert served[0] == 0
    assert len(served) + len(refused) == 40
    assert len(served) > 1
    assert len(refused) >= 20
    if known:  # they were not kept waiting to be refused
        second = [number for number in ended if number in served][1]
        assert ended.index(second) >= 20


@pytest.mark.parametrize("grace", slow_except([0, 1], [1]))
async def test_a_slow_reader_finds_out_why_at_the_end(bundled, monkeypatch, grace):
    """The status comes next, before the outputs that wait: the reader would not read all of them in time."""
    monkeypatch.setattr(server_module, "_LAST_STATUS_SECONDS", 4.0)
    monkeypatch.setattr(output_queue, "CAPACITY", 1024**2)
    server = Server([bundled], "127.0.0.1:0")
    address = await server.start()
    (engine,) = server._engines
    async with grpc.aio.insecure_channel(address, options=NARROW) as channel:
        call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))
        await call.read()
        await until(lambda: any(state.queue.is_full for state in engine._admission._states))
        stopping = asyncio.create_task(server.stop(grace))
        await until(lambda: not engine._admission._states)
        await asyncio.sleep(0.5)
        steps = 0

        async def read_slowly() -> None:
            nonlocal steps
            while (response := await call.read()) is not grpc.aio.EOF:
                steps += len(response.steps.steps)
                await asyncio.sleep(0.05)

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_slowly()
        await asyncio.wait_for(stopping, 60)
    assert (raised.value.code(), raised.value.details()) == (UNAVAILABLE, "the server is shutting down")
    assert retry_delay_of(raised.value) > 0
    assert steps < 100  # of 150 and more that were computed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    (log := tmp_path / "log").touch()
    sidelight = Path(sys.executable).with_name("sidelight")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sidelight, "serve", "--address", "127.0.0.1:0", "--max-slots", "1", "--grace", "60"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        with grpc.insecure_channel(address, options=NARROW) as channel:
            # One that reads, slowly: the server waits for it.
            call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))
            next(call)
            process.send_signal(signal.SIGTERM)
            end = time.monotonic() + 60
            while "stopping" not in log.read_text():
                assert time.monotonic() < end
                time.sleep(0.01)
            for _ in range(3):
                next(call)
                time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == -signal.SIGTERM
