"""Clients that stop sending or stop reading are given up in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import grpc
import pytest
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub, wait_until
from hostile_clients import ATTRIBUTE, NARROW, REFLECTION, SENTENCE, long_request, reason_of_aio
from raw_http2 import RawConnection
from sidelight.server.engine import output_queue, preemption
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.operations import CallLimits
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text


@pytest.mark.slow
def test_stalled_readers_are_given_up_and_keep_nobody_out(bundled, engines, monkeypatch):
    """More of them than may wait, of every kind; their memory and their caches are given back."""
    monkeypatch.setattr(preemption, "_GIVE_BACK_SECONDS", 0.1)
    given_back = []
    give_back = preemption.give_back
    monkeypatch.setattr(preemption, "give_back", lambda: given_back.append(1) or give_back())
    messages = [
        long_request(kinds=[CROSS, DECODER_SELF]),
        request(SENTENCE, kinds=[ENCODER_SELF], decoding=text.Decoding(ignore_eos=True, max_new_tokens=250)),
        request(SENTENCE, kinds=[CROSS], given=text.Text(text="Meine Großmutter. " * 20)),
        request("A dog."),
    ]
    monkeypatch.setattr(output_queue, "CAPACITY", 8192)
    limits = EngineConfig(max_running=4, max_waiting=8, max_preempted=16)
    call_limits = CallLimits(reader_timeout=3.0)
    with (
        serving(bundled, limits=limits, call_limits=call_limits) as address,
        stub(address) as service,
        RawConnection(address) as raw,
    ):
        for number in range(60):
            raw.call(ATTRIBUTE, messages[number % 4].SerializeToString())
            if number % 4 == 3:
                time.sleep(0.1)
        for _ in range(5):
            for message in (messages[3], messages[2]):
                assert list(service.Attribute(message, timeout=60))[-1].HasField("finished")
        wait_until(lambda: not engines[0]._admission._states)
        assert engines[0]._core.requests.runner.num_free_slots == 4
        wait_until(lambda: given_back)
        assert list(service.Attribute(messages[0], timeout=60))[-1].HasField("finished")


def test_a_reader_that_reads_on_too_late_gets_the_reason(bundled, engines):
    with serving(bundled, call_limits=CallLimits(reader_timeout=1.0)) as address, RawConnection(address) as raw:
        stream = raw.call(ATTRIBUTE, long_request(kinds=[CROSS, DECODER_SELF]).SerializeToString())
        wait_until(lambda: engines[0]._admission._states)
        wait_until(lambda: not engines[0]._admission._states)
        raw.open_window(stream, 1 << 24)
        received = raw.frames_until_closed(stream)
        assert b"grpc-status\x0210" in received  # ABORTED


async def test_a_stalled_reader_finds_out_why_it_was_given_up(bundled, engines):
    with serving(bundled, call_limits=CallLimits(reader_timeout=1.0)) as address:
        async with grpc.aio.insecure_channel(address, options=NARROW) as channel:
            call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))
            await call.read()
            await asyncio.to_thread(wait_until, lambda: not engines[0]._admission._states)

            async def read_on() -> None:
                while await call.read() is not grpc.aio.EOF:
                    pass

            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await read_on()
    assert (raised.value.code(), reason_of_aio(raised.value)) == (grpc.StatusCode.ABORTED, "READER_STALLED")


def test_a_stream_of_requests_that_stops_in_the_middle_of_one_has_an_end(bundled):
    """Reflection's: a whole request, and half of the next."""
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

    whole = ServerReflectionRequest(list_services="").SerializeToString()
    limits = CallLimits(arrival_timeout=1.0)
    with serving(bundled, call_limits=limits) as address, RawConnection(address, window=1 << 20) as raw:
        second = b"\x00" + (1000).to_bytes(4, "big") + b"\x12" * 10
        stream = raw.call(REFLECTION, whole + second, of=len(whole))
        received = raw.frames_until_closed(stream)
        assert b"sidelight.v1.AttributionService" in received
        assert b"has not arrived" in received


def test_half_a_request_is_not_held_for_ever(bundled):
    limits = CallLimits(arrival_timeout=1.0)
    with (
        serving(bundled, call_limits=limits) as address,
        contextlib.ExitStack() as stack,
        stub(address) as service,
    ):
        ours, health = "/sidelight.v1.AttributionService", "/grpc.health.v1.Health"
        methods = [f"{ours}/{name}" for name in ("Attribute", "GetModel", "ListModels")]
        methods += [f"{health}/{name}" for name in ("Check", "Watch", "List")]
        methods += [REFLECTION, f"{ours}/Align", f"{ours}/Follow", f"{ours}/AttributeMany"]
        clients = {method: stack.enter_context(RawConnection(address, window=1 << 20)) for method in methods}
        streams = {method: raw.call(method, b"\x12" * 10_000, of=4 * 1024**2 - 1) for method, raw in clients.items()}
        for method, stream in streams.items():
            received = clients[method].frames_until_closed(stream)
            # Methods of later versions say so, once they have waited.
            late = b"has not arrived" in received
            assert late or (method.endswith("Align") and b"grpc-status\x0212" in received), method
        assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")


async def test_a_client_that_goes_in_mid_write_leaves_no_trace_in_the_log(bundled, caplog):
    with caplog.at_level(logging.INFO), serving(bundled) as address:
        for number in range(24):
            async with grpc.aio.insecure_channel(address, options=NARROW) as channel:
                call = services.AttributionServiceStub(channel).Attribute(long_request(kinds=[CROSS, DECODER_SELF]))
                await call.read()
                await asyncio.sleep(0.01 * (number % 6))
                if number % 2:
                    call.cancel()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
