"""Many texts on one stream: as single calls answer them, each with its own end, and flow control in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import answers
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, stub, wait_until
from hostile_clients import INVALID, NARROW, SENTENCE, long_request, reason_of_aio
from raw_http2 import RawConnection
from sidelight.server.api import calls as calls_module
from sidelight.server.api.rpcs import attribute_many as many_module
from sidelight.server.api.server import Server
from sidelight.server.engine import output_queue
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.operations import CallLimits
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

DATA = Path(__file__).parents[5] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
MANY = "/sidelight.v1.AttributionService/AttributeMany"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SENTENCES = [
    SENTENCE,
    "I don't want to be your friend.",
    "Where is the nearest train station?",
    "He is a good tennis player.",
    "A dog.",
    "I have never been to a place as beautiful as this before, and neither have my parents.",
]


def attribute(request_id: str, message: pb.AttributeRequest, **fields: object) -> pb.AttributeManyRequest:
    message.request_id = request_id
    return pb.AttributeManyRequest(attribute=message, **fields)


def events_of(responses: Iterator[pb.AttributeManyResponse]) -> Iterator[pb.AttributeManyResponse]:
    for response in responses:
        if response.HasField("batch"):
            assert len(response.batch.responses) > 1
            assert not response.request_id
            yield from response.batch.responses
        else:
            yield response


def plain(responses: list[pb.AttributeResponse]) -> list[bytes]:
    """Responses without what differs from call to call: ids, times, and how many steps share a message."""
    parts = []
    for response in responses:
        if response.HasField("started"):
            response.started.request_id = ""
            parts.append(response.started)
        elif response.HasField("finished"):
            for name in ("queue_time", "time_to_first_step", "total_time"):
                response.finished.usage.ClearField(name)
            parts.append(response.finished)
        else:
            parts.extend(list(response.steps.steps) or [response.encoder_self])
    return [part.SerializeToString() for part in parts]


def mixed_requests() -> list[pb.AttributeRequest]:
    captures = [[CROSS], [CROSS, DECODER_SELF, ENCODER_SELF], [DECODER_SELF]]
    messages = [request(SENTENCES[number % 6], captures[number % 3]) for number in range(36)]
    for number, message in enumerate(messages):
        if number % 5 == 0:
            message.decoding.sampling.seed = number
        if number % 7 == 3:
            message.given.text = "Ein Hund."
        if number % 9 == 4:
            message.resume_at = 2
    return messages


def test_each_text_is_answered_as_by_a_call_of_its_own(bundled_server):
    messages = mixed_requests()
    with stub(bundled_server) as service:
        alone = [plain(list(service.Attribute(message, timeout=60))) for message in messages]
        streamed: dict[str, list[pb.AttributeResponse]] = {}
        num_messages = num_events = 0
        for response in service.AttributeMany(
            (attribute(f"t{number}", message) for number, message in enumerate(messages)), timeout=120
        ):
            num_messages += 1
            for event in events_of(iter([response])):
                assert event.HasField("response")
                num_events += 1
                streamed.setdefault(event.request_id, []).append(event.response)
    assert [plain(streamed[f"t{number}"]) for number in range(36)] == alone
    assert num_messages < num_events / 2


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_each_sentence_of_the_dev_set_has_the_rows_of_a_call_of_its_own(bundled_server, first):
    if not DATA.is_file():
        pytest.skip("../shared is not here")
    lines = DATA.read_text(encoding="utf-8").splitlines()[first : first + 250]
    messages = {str(number): request(line.split("\t")[0], [CROSS]) for number, line in enumerate(lines)}
    assert len(messages) == 250
    with stub(bundled_server) as service:
        together = answers.ask_many(service, messages)
        for name, message in messages.items():
            alone = answers.ask(service, message)
            assert not alone.code
            answers.assert_equal(together[name].events, alone.events)


def test_a_text_that_fails_carries_its_error_and_the_others_go_on(bundled_server):
    good = request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=200))
    bad = request("A dog.", [CROSS])
    bad.capture.heads.layers.layers.append(9)
    requests = [
        attribute("good", good),
        attribute("bad", bad),
        attribute("", request("A dog.")),
        attribute("good", request("A dog.")),
        attribute("x" * 200, request("A dog.")),
        attribute("a\nb", request("A dog.")),
        attribute("model", request("A dog.", model="other")),
        attribute("late", request("A dog."), timeout=Duration(seconds=-1)),
        pb.AttributeManyRequest(),
        pb.AttributeManyRequest(cancel=""),
        pb.AttributeManyRequest(cancel="nobody"),
    ]
    with stub(bundled_server) as service:
        events = list(events_of(service.AttributeMany(iter(requests), timeout=60)))
    errors = [(event.request_id, event.error) for event in events if event.HasField("error")]
    assert [(request_id, error.code, error.field, error.reason) for request_id, error in errors] == [
        ("bad", 3, "attribute.capture.heads.layers.layers[0]", "LAYER_OUT_OF_RANGE"),
        ("", 3, "attribute.request_id", "REQUIRED"),
        ("good", 3, "attribute.request_id", "DUPLICATE"),
        ("x" * 128, 3, "attribute.request_id", "MALFORMED"),
        ("a\nb", 3, "attribute.request_id", "MALFORMED"),
        ("model", 5, "attribute.model", "UNKNOWN_MODEL"),
        ("late", 3, "timeout", "OUT_OF_RANGE"),
        ("", 3, "event", "REQUIRED"),
        ("", 3, "cancel", "REQUIRED"),
    ]
    assert all(error.field in error.message for _, error in errors)
    finished = [event for event in events if event.response.HasField("finished")]
    assert [event.request_id for event in finished] == ["good"]
    assert finished[0].response.finished.usage.target_tokens == 200


@pytest.mark.slow
def test_a_full_queue_refuses_one_text_with_a_delay(bundled):
    with serving(bundled, limits=EngineConfig(max_running=1, max_waiting=2)) as address, stub(address) as service:
        requests = (attribute(str(number), long_request()) for number in range(8))
        events = list(events_of(service.AttributeMany(requests, timeout=60)))
    errors = [event.error for event in events if event.HasField("error")]
    assert {(error.code, error.reason) for error in errors} == {(8, "QUEUE_FULL")}
    assert all(error.retry_delay.seconds for error in errors)
    assert len(errors) + sum(event.response.HasField("finished") for event in events) == 8


class Sender:
    """A stream of requests that a test sends one by one."""

    def __init__(self, service: services.AttributionServiceStub) -> None:
        self._requests: queue.SimpleQueue[pb.AttributeManyRequest | None] = queue.SimpleQueue()
        self.call = service.AttributeMany(iter(self._requests.get, None), timeout=60)
        self.events = events_of(self.call)

    def send(self, message: pb.AttributeManyRequest) -> None:
        self._requests.put(message)

    def close(self) -> None:
        self._requests.put(None)

    def wait_for(self, condition: Callable[[pb.AttributeManyResponse], object]) -> pb.AttributeManyResponse:
        return next(event for event in self.events if condition(event))


def test_a_text_is_cancelled_on_its_stream_and_from_another_connection(bundled_server):
    with stub(bundled_server) as service, stub(bundled_server) as other:
        sender = Sender(service)
        for request_id in ("here", "there"):
            sender.send(attribute(request_id, long_request()))
            sender.wait_for(lambda event, id_=request_id: event.request_id == id_ and event.response.HasField("steps"))
        sender.send(pb.AttributeManyRequest(cancel="here"))
        error = sender.wait_for(lambda event: event.HasField("error"))
        assert (error.request_id, error.error.code, error.error.reason) == ("here", 1, "CANCELLED")
        cancelled = other.CancelAttribution(pb.CancelAttributionRequest(request_id="there"), timeout=60)
        assert cancelled.cancelled == 1
        error = sender.wait_for(lambda event: event.HasField("error"))
        assert (error.request_id, error.error.reason) == ("there", "CANCELLED")
        sender.send(attribute("here", request("A dog.")))  # the id is free again
        sender.close()
        rest = list(sender.events)
    assert rest[-1].request_id == "here"
    assert rest[-1].response.HasField("finished")


def test_each_text_has_its_time(bundled):
    with serving(bundled, limits=EngineConfig(max_running=1)) as address, stub(address) as service:
        requests = [
            attribute("first", long_request()),
            attribute("late", request("A dog."), timeout=Duration(nanos=1)),
            attribute("second", request("A dog."), timeout=Duration(seconds=60)),
        ]
        events = list(events_of(service.AttributeMany(iter(requests), timeout=60)))
    assert [(event.request_id, event.error.code) for event in events if event.HasField("error")] == [("late", 4)]
    assert [event.request_id for event in events if event.response.HasField("finished")] == ["first", "second"]


def test_what_is_no_message_ends_the_stream(bundled_server):
    requests = [attribute("good", long_request()).SerializeToString(), b"\x0a\x64" + b"\x00" * 100]
    with grpc.insecure_channel(bundled_server) as channel:
        call = channel.stream_stream(MANY)
        with pytest.raises(grpc.RpcError) as raised:
            list(call(iter(requests), timeout=60))
    assert raised.value.code() == INVALID


def test_a_reader_that_stalls_holds_up_its_own_stream_only(bundled, engines, monkeypatch):
    """The server reads no further request, holds a bounded number of outputs, and gives the stream up in the end."""
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    started = []
    start = many_module._ManyStream._start
    monkeypatch.setattr(
        many_module._ManyStream, "_start", lambda stream, *args: started.append(1) or start(stream, *args)
    )
    messages = [attribute(str(number), long_request(kinds=[CROSS, DECODER_SELF])) for number in range(40)]
    framed = b"".join(
        b"\x00" + len(data).to_bytes(4, "big") + data for data in (m.SerializeToString() for m in messages)
    )
    limits = EngineConfig(max_running=4, max_waiting=64)
    call_limits = CallLimits(reader_timeout=4.0, max_texts_per_stream=12)
    with (
        serving(bundled, limits=limits, call_limits=call_limits) as address,
        stub(address) as service,
        RawConnection(address) as raw,
    ):
        assert service.GetModel(pb.GetModelRequest(), timeout=60).model.limits.max_texts_per_stream == 12
        first = len(messages[0].SerializeToString())
        raw.call(MANY, framed[5:], of=first)
        wait_until(lambda: any(state.queue.is_full for state in engines[0]._admission._states))
        for _ in range(5):
            assert list(service.Attribute(request(SENTENCE), timeout=60))[-1].HasField("finished")
        assert len(started) == 12
        assert all(state.queue._held_bytes < 32 * 1024 for state in list(engines[0]._admission._states))
        wait_until(lambda: not engines[0]._admission._states)
        assert len(started) == 12


def test_the_client_of_a_stalled_stream_comes_after_others(bundled, engines, monkeypatch):
    """Each text of the stream counts as a reader that has stalled."""
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    held_back = []
    limits = EngineConfig(max_running=2)
    with serving(bundled, limits=limits) as address, grpc.insecure_channel(address, options=NARROW) as channel:
        (engine,) = engines
        hold_back = engine.hold_back
        monkeypatch.setattr(engine, "hold_back", lambda value: held_back.append(value.clients) or hold_back(value))
        for _ in range(4):  # gRPC tells a call in one of two orders that its client has gone
            held_back.clear()
            call = services.AttributionServiceStub(channel).AttributeMany(
                attribute(str(number), long_request(kinds=[CROSS, DECODER_SELF])) for number in range(20)
            )
            next(call)
            wait_until(lambda: any(held_back))
            call.cancel()
            wait_until(lambda: not engine._admission._states)


@pytest.mark.slow
async def test_a_stream_may_wait_for_its_next_text_but_not_for_its_first(bundled, monkeypatch):
    monkeypatch.setattr(calls_module, "_MAX_IDLE_STREAMS", 1)
    with serving(bundled, call_limits=CallLimits(arrival_timeout=0.5)) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            service = services.AttributionServiceStub(channel)
            silent = service.AttributeMany()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await silent.read()
            assert reason_of_aio(raised.value) == "REQUEST_LATE"
            idle = service.AttributeMany()
            await _send_and_read(idle, "a")
            await asyncio.sleep(2)
            await _send_and_read(idle, "b")
            another = service.AttributeMany()
            await _send_and_read(another, "a")
            with pytest.raises(grpc.aio.AioRpcError) as raised:  # there may be one idle stream
                await idle.read()
            assert (raised.value.code(), reason_of_aio(raised.value)) == (UNAVAILABLE, "STREAM_IDLE")
            await _send_and_read(another, "b")


async def _send_and_read(call, request_id: str) -> None:
    await call.write(attribute(request_id, request("A dog.")))
    while True:
        response = await call.read()
        if any(event.response.HasField("finished") for event in events_of(iter([response]))):
            return


async def test_a_server_that_ends_finishes_running_texts_and_says_why(bundled):
    server = Server([bundled], "127.0.0.1:0", EngineConfig(max_running=2))
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        service = services.AttributionServiceStub(channel)
        idle, busy = service.AttributeMany(), service.AttributeMany()
        await _send_and_read(idle, "a")
        await busy.write(attribute("b", long_request()))
        await busy.read()
        stopping = asyncio.create_task(server.stop(60))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await idle.read()
        assert (raised.value.code(), reason_of_aio(raised.value)) == (UNAVAILABLE, "SHUTTING_DOWN")
        events = []

        async def read_rest() -> None:
            while (response := await busy.read()) is not grpc.aio.EOF:
                events.extend(events_of(iter([response])))

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_rest()
        assert events[-1].response.HasField("finished")
        assert (raised.value.code(), reason_of_aio(raised.value)) == (UNAVAILABLE, "SHUTTING_DOWN")
        await asyncio.wait_for(stopping, 30)


async def test_a_stalled_stream_does_not_hold_up_the_end(bundled, monkeypatch):
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    server = Server([bundled], "127.0.0.1:0")
    address = await server.start()
    (engine,) = server._engines
    with RawConnection(address) as raw:
        message = attribute("a", long_request(kinds=[CROSS, DECODER_SELF])).SerializeToString()
        raw.call(MANY, message)
        while not any(state.queue.is_full for state in engine._admission._states):
            await asyncio.sleep(0.01)
        await asyncio.wait_for(server.stop(100), 60)


async def test_a_client_that_goes_takes_its_texts_with_it(bundled, engines, caplog):
    with serving(bundled) as address:
        for ends_by in ("cancel", "close"):
            async with grpc.aio.insecure_channel(address) as channel:
                call = services.AttributionServiceStub(channel).AttributeMany()
                for number in range(6):
                    await call.write(attribute(str(number), long_request()))
                await call.read()
                if ends_by == "cancel":
                    call.cancel()
            await asyncio.to_thread(wait_until, lambda: not engines[0]._admission._states)
            with contextlib.suppress(asyncio.CancelledError):
                await call.wait_for_connection()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
