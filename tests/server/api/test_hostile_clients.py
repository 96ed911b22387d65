"""Clients that send what no library would, or take nothing, cost the others nothing."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gzip
import logging
import re
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub, wait_until
from model_zoo import build_model
from raw_http2 import RawConnection
from sidelight.server.api import attribute as attribute_module
from sidelight.server.api import calls as calls_module
from sidelight.server.api import parsing
from sidelight.server.engine import output_builder, output_queue, preemption
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.request_state import RequestState
from sidelight.server.models.loader import load
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."
ATTRIBUTE = "/sidelight.v1.AttributionService/Attribute"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# A client that takes in little more than it reads, by a connection of its own.
NARROW = [("grpc.http2.lookahead_bytes", 16384), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


def long_request(**fields):
    return request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=250), **fields)


def reason_of(error: grpc.RpcError) -> str:
    """The reason for programs in a status' details."""
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason


# ---- bytes that are no request ---------------------------------------------------------------------------------------


def delimited(tag: int, data: bytes) -> bytes:
    length, rest = b"", len(data)
    while rest > 127:
        length += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([tag]) + length + bytes([rest]) + data


MILLIONS = {
    "empty sources": b"\x1a\x00" * 1_900_000,
    "unknown fields": b"\xf8\x01\x00" * 1_300_000,
    "chat messages": delimited(0x1A, delimited(0x1A, b"\x0a\x00" * 1_900_000)),
    "stop texts": delimited(0x32, b"\x2a\x00" * 1_900_000),
}


@pytest.mark.parametrize("fields", MILLIONS.values(), ids=MILLIONS)
def test_a_bad_last_field_is_named_without_a_walk_over_the_others(bundled_server, fields, monkeypatch):
    """4 KB on the wire, by gzip, in which everybody else would wait for 13 seconds."""
    looked_at = []
    is_utf8 = parsing._is_utf8
    monkeypatch.setattr(parsing, "_is_utf8", lambda data: looked_at.append(1) or is_utf8(data))
    data = fields + delimited(0x12, b"\xff\xfe")
    assert len(gzip.compress(data)) < 8192
    with grpc.insecure_channel(bundled_server) as channel:
        call = channel.unary_stream(ATTRIBUTE)
        with pytest.raises(grpc.RpcError) as raised:
            list(call(data, timeout=60, compression=grpc.Compression.Gzip))
    assert raised.value.code() == INVALID
    assert raised.value.details() == "model: is not valid UTF-8"
    assert len(looked_at) <= parsing._MAX_CHECKED + 1


@pytest.mark.parametrize("depth", ["in a chat", "among many stop texts"])
def test_what_is_not_looked_at_is_refused_all_the_same(bundled_server, depth):
    if depth == "in a chat":
        data = delimited(0x1A, delimited(0x1A, delimited(0x0A, delimited(0x12, b"\xc3\x28"))))
        said = "source.chat.messages[0].content: is not valid UTF-8"
    else:
        data = delimited(0x32, b"\x2a\x00" * 5000 + delimited(0x2A, b"\xff"))
        said = "a text of the request is not valid UTF-8"
    with grpc.insecure_channel(bundled_server) as channel, pytest.raises(grpc.RpcError) as raised:
        list(channel.unary_stream(ATTRIBUTE)(data, timeout=60))
    assert (raised.value.code(), raised.value.details()) == (INVALID, said)


STANDARD = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
STANDARD += ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
OURS = [f"/sidelight.v1.AttributionService/{name}" for name in ("Attribute", "GetModel")]


@pytest.mark.parametrize("method", STANDARD + OURS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x50abc"])
async def test_malformed_bytes_are_refused_alike_everywhere(bundled_server, method, data, caplog):
    with caplog.at_level(logging.INFO):
        async with grpc.aio.insecure_channel(bundled_server) as channel:
            call = channel.stream_stream(method)(iter([data]), timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in call:
                    pass
    assert raised.value.code() == INVALID
    assert not re.search("Error|Health|Reflection", raised.value.details() or "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_health_and_reflection_answer_as_grpcs_own_services(bundled_server):
    async with grpc.aio.insecure_channel(bundled_server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "sidelight.v1.AttributionService"):
            response = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=60)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=60)
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (listed,) = [response async for response in reflection.ServerReflectionInfo(asked, timeout=60)]
        names = {service.name for service in listed.list_services_response.service}
        assert {"sidelight.v1.AttributionService", "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize("method", ["AttributeMany", "Follow"])
@pytest.mark.parametrize("sends", ["nothing", "much", "one, and waits"])
async def test_methods_of_later_versions_are_unimplemented_for_asyncio_too(bundled_server, method, sends):
    """Clients that are still sending take a status that comes before for a fault of the connection."""

    async def messages():
        for _ in range({"nothing": 0, "much": 200}.get(sends, 1)):
            yield b"\x0a\x64" + b"\x00" * 100
        if sends == "one, and waits":
            await asyncio.sleep(30)

    async with grpc.aio.insecure_channel(bundled_server) as channel:
        call = channel.stream_stream(f"/sidelight.v1.AttributionService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in call(messages(), timeout=60):
                pass
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_message_beyond_the_limit_is_refused(bundled_server):
    with stub(bundled_server) as service, pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(request("x" * (4 * 1024**2 + 1)), timeout=60))
    assert raised.value.code() == EXHAUSTED


@pytest.mark.parametrize("entries", [[("x", "y" * 20_000)], [(f"x{number}", "y" * 900) for number in range(40)]])
def test_metadata_beyond_the_limit_are_refused(bundled_server, entries):
    with stub(bundled_server) as service:
        assert service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=[("x", "y" * 12_000)]).models
        with pytest.raises(grpc.RpcError) as raised:
            service.ListModels(pb.ListModelsRequest(), timeout=60, metadata=entries)
    assert raised.value.code() == EXHAUSTED


# ---- limits ----------------------------------------------------------------------------------------------------------


def refusal(service, message) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as raised:
        list(service.Attribute(message, timeout=60))
    return raised.value


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    loaded = load(build_model("llama", tmp_path_factory.mktemp("zoo")))
    loaded.tokenizer._tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    return loaded


def chat(*contents: str) -> pb.AttributeRequest:
    message = pb.AttributeRequest()
    for content in contents:
        message.source.chat.messages.add(role="user", content=content)
    return message


def test_a_request_is_refused_before_it_is_tokenized(bundled, chat_model, monkeypatch):
    """By bytes, by letters that normalization makes many of, and by what can be counted; as GetModel says."""
    tokenized = []
    with serving(bundled, chat_model) as address, stub(address) as service:
        limits = service.GetModel(pb.GetModelRequest(), timeout=60).model.limits
        chats = service.GetModel(pb.GetModelRequest(name="llama"), timeout=60).model.limits
        assert (limits.max_request_bytes, limits.max_source_bytes) == (4 * 1024**2, 256 * 64)
        assert [model.limits for model in service.ListModels(pb.ListModelsRequest(), timeout=60).models].count(limits)
        stops, many = ["x" * limits.max_stop_bytes] * limits.max_stop_texts, 350_000
        refused = [
            (request("\ufdfa" * 16_384), "source.text"),
            (request("\ufdfa" * 2_000), "source.text"),
            (request("x" * (limits.max_source_bytes + 1)), "source.text"),
            (request("x", prefix=text.Text(text="y" * (limits.max_target_bytes + 1))), "prefix.text"),
            (request("x", given=text.Text(text="\ufdfa" * 16_384)), "given.text"),
            (request("x", decoding=text.Decoding(stop=[*stops, "y"])), "decoding.stop"),
            (request("x", decoding=text.Decoding(stop=["y"] * many)), "decoding.stop"),
            (request("x", decoding=text.Decoding(stop=["y" * (limits.max_stop_bytes + 1)])), "decoding.stop[0]"),
            (chat("x" * 3_000_000), "source.chat"),
            (chat(*["\ufdfa" * 100] * 100), "source.chat"),
            (chat(*[""] * (chats.max_chat_messages + 1)), "source.chat.messages"),
        ]
        for message, field in refused:
            message.model = "llama" if "chat" in field else ""
            with monkeypatch.context() as patch:
                if "source" in field:
                    for loaded in (bundled, chat_model):
                        patch.setattr(loaded.tokenizer, "_encode", lambda *_, **__: tokenized.append(1) or 1 / 0)
                error = refusal(service, message)
            assert (error.code(), error.details().split(": ")[0]) == (INVALID, field)
        assert not tokenized


@pytest.mark.parametrize("name", ["bundled", "gpt2", "t5", "nllb"])
def test_every_text_that_fits_the_model_is_within_the_limits(name, bundled, tmp_path_factory):
    """The longest pieces of the vocabulary, as many as there may be."""
    loaded = bundled if name == "bundled" else load(build_model(name, tmp_path_factory.mktemp("zoo")))
    tokenizer = loaded.tokenizer._tokenizer
    pieces = sorted(tokenizer.get_vocab(), key=lambda piece: len(piece.encode()))[-20:]
    for piece in pieces:
        letters = tokenizer.convert_tokens_to_string([piece])
        assert len((letters * loaded.max_source_tokens).encode()) <= loaded.tokenizer.max_bytes(
            loaded.max_source_tokens
        )


@pytest.mark.parametrize("length", [3000, 1_000_000])
def test_values_are_cut_in_messages(tmp_path_factory, length):
    """gRPC's clients refuse trailers above 8 KiB, by lot or always: the status would be another."""
    loaded = load(build_model("nllb", tmp_path_factory.mktemp("zoo")))
    letters = {"ascii": "x", "percent-encoded": "字", "astral": "😀", "a control": "\n"}
    with serving(loaded) as address, stub(address) as service:
        for letter in letters.values():
            many = letter * (length // len(letter.encode()))
            message = request("A dog.", request_id="字" * 128, source_language="eng_Latn", target_language=many)
            error = refusal(service, message)
            assert error.code() == INVALID
            assert error.details().startswith("target_language: ")
            assert sum(len(key) + 4 * len(value) // 3 for key, value in error.trailing_metadata()) < 4096
            assert len(error.details().encode()) * 3 < 2048
            message.source_language = many
            assert refusal(service, message).code() == INVALID
            assert refusal(service, request("A dog.", model=many)).code() == grpc.StatusCode.NOT_FOUND


# ---- many at once ----------------------------------------------------------------------------------------------------


async def test_two_thousand_at_once_are_served_or_refused_with_a_reason(bundled, monkeypatch):
    """gRPC itself cancels some requests without a status if more than a thousand wait for a handler."""
    validated = []
    validate_request = attribute_module.validate_request
    monkeypatch.setattr(
        attribute_module, "validate_request", lambda *args: validated.append(1) or validate_request(*args)
    )
    ends: collections.Counter[str] = collections.Counter()
    message = request("A dog.", decoding=text.Decoding(max_new_tokens=1))
    with serving(bundled, limits=EngineConfig(max_running=2, max_waiting=16)) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            service = services.AttributionServiceStub(channel)

            async def one() -> None:
                try:
                    async for _ in service.Attribute(message, timeout=120):
                        pass
                except grpc.aio.AioRpcError as error:
                    ends[f"{error.code().name} {reason_of_aio(error)}"] += 1
                else:
                    ends["served"] += 1

            await asyncio.gather(*(one() for _ in range(2000)))
    assert set(ends) == {"served", "RESOURCE_EXHAUSTED QUEUE_FULL"}, ends
    # The queue is checked before any text. On a busy machine, a few waiting requests give their places to others.
    assert ends["served"] <= len(validated) < ends["served"] + 50


def reason_of_aio(error: grpc.aio.AioRpcError) -> str:
    from google.rpc import error_details_pb2, status_pb2

    info, status = error_details_pb2.ErrorInfo(), status_pb2.Status()
    status.ParseFromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    return info.reason if any(detail.Unpack(info) for detail in status.details) else "without a reason"


async def test_short_texts_go_before_long_ones(bundled, monkeypatch):
    """Texts that are validated in threads, a few at a time."""
    monkeypatch.setattr(attribute_module, "_SHORT_BYTES", 0)
    started, ended = [], []
    validate_request = attribute_module.validate_request

    def slow(message, *args):
        started.append(len(message.source.text))
        time.sleep(0.05)
        ended.append(len(message.source.text))
        assert len(started) - len(ended) < 2
        return validate_request(message, *args)

    monkeypatch.setattr(attribute_module, "validate_request", slow)
    texts = ["dog " * 200] * 12 + ["A dog."] * 4
    with serving(bundled) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            service = services.AttributionServiceStub(channel)

            async def one(content: str) -> None:
                async for _ in service.Attribute(
                    request(content, decoding=text.Decoding(max_new_tokens=1)), timeout=60
                ):
                    pass

            calls = [asyncio.create_task(one(content)) for content in texts]
            await asyncio.sleep(0.02)
            calls[9].cancel()  # nobody resolves what is given up meanwhile
            results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, BaseException) for result in results) == 1
    assert len(started) == 15
    assert max(place for place, length in enumerate(started) if length < 10) < 10


# ---- readers that take nothing ---------------------------------------------------------------------------------------


def test_stalled_readers_are_given_up_and_keep_nobody_out(bundled, engines, monkeypatch):
    """More of them than may wait, of every kind; their memory and their caches are given back."""
    monkeypatch.setattr(calls_module, "_MAX_STALL_SECONDS", 3.0)
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
    with serving(bundled, limits=limits) as address, stub(address) as service, RawConnection(address) as raw:
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


def test_a_reader_that_reads_on_too_late_gets_the_reason(bundled, engines, monkeypatch):
    monkeypatch.setattr(calls_module, "_MAX_STALL_SECONDS", 1.0)
    with serving(bundled) as address, RawConnection(address) as raw:
        stream = raw.call(ATTRIBUTE, long_request(kinds=[CROSS, DECODER_SELF]).SerializeToString())
        wait_until(lambda: engines[0]._admission._states)
        wait_until(lambda: not engines[0]._admission._states)
        raw.open_window(stream, 1 << 24)
        received = raw.frames_until_closed(stream)
        assert b"grpc-status\x0210" in received  # ABORTED


async def test_a_stalled_reader_finds_out_why_it_was_given_up(bundled, engines, monkeypatch):
    monkeypatch.setattr(calls_module, "_MAX_STALL_SECONDS", 1.0)
    with serving(bundled) as address:
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


def test_what_waits_for_slow_readers_has_one_bound(bundled, engines, monkeypatch):
    """Attention of a single pass (encoder self-attention, given targets) is computed again when it is read."""
    long = " ".join(["grandmother"] * 60)
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.02,))
    monkeypatch.setattr(output_builder, "_PART_BYTES", 16 * 1024)
    messages = [
        request(long, kinds=[ENCODER_SELF], decoding=text.Decoding(max_new_tokens=30, ignore_eos=True), scores=[1]),
        request(long, kinds=[CROSS, DECODER_SELF], given=text.Text(text="Meine Großmutter. " * 25)),
        request(long, kinds=[ENCODER_SELF, CROSS], given=text.Text(text="Großmutter " * 20)),
    ]
    with serving(bundled, limits=EngineConfig(max_running=16)) as address, stub(address) as service:
        alone = [list(service.Attribute(message, timeout=60)) for message in messages]
        bound = 1024 * 1024
        monkeypatch.setattr(preemption, "_ATTENTION_BYTES", bound)
        with contextlib.ExitStack() as stack:
            calls = []
            for number in range(12):
                channel = stack.enter_context(grpc.insecure_channel(address, options=NARROW))
                call = services.AttributionServiceStub(channel).Attribute(messages[number % 3], timeout=120)
                calls.append((number, call, [next(call)]))
            time.sleep(1)
            assert list(service.Attribute(messages[1], timeout=60))[-1].HasField("finished")
            states = list(engines[0]._admission._states)
            largest = max(state.request.single_pass_bytes for state in states)
            assert sum(state.request.single_pass_bytes for state in states) > 2 * bound
            assert sum(state.attention_bytes for state in states) <= max(bound, largest)
            assert any(state.must_recompute for state in states)
            for number, call, begun in calls:
                responses = [*begun, *call]
                assert parts(responses) == parts(alone[number % 3])
                assert [step.token for step in steps_of(responses)] == [s.token for s in steps_of(alone[number % 3])]
                assert responses[-1].finished.text == alone[number % 3][-1].finished.text


def test_the_caches_of_stalled_readers_have_a_bound_of_bytes(bundled, monkeypatch):
    """The requests that have waited longest give way, with a status. New requests are served."""
    bound, limits = 4 * 1024**2, EngineConfig(max_running=4)
    monkeypatch.setattr(preemption, "_CACHE_BYTES", bound)
    monkeypatch.setattr(preemption, "_CACHE_SLOTS", 0)
    monkeypatch.setattr(output_queue, "CAPACITY", 16 * 1024)
    held: list[tuple[int, int]] = []
    preempt = preemption.Preemption._preempt

    def measuring(ours, state, resuming=None):
        is_preempted = preempt(ours, state, resuming)
        waiting = [other for other in ours._requests.preempted if other is not resuming]
        caches = [other.sequence.swapped.cache for other in waiting]
        kept = [tensor for cache in caches for layers in cache for pair in layers for tensor in pair]
        held.append((sum(tensor.untyped_storage().nbytes() for tensor in kept), len(caches)))
        return is_preempted

    monkeypatch.setattr(preemption.Preemption, "_preempt", measuring)
    message = long_request(kinds=[CROSS, DECODER_SELF])
    message.source.text = "My grandmother is still vigorous. " * 20
    with serving(bundled, limits=limits) as address, stub(address) as service, RawConnection(address) as raw:
        streams = [raw.call(ATTRIBUTE, message.SerializeToString()) for _ in range(24)]
        for _ in range(3):
            assert list(service.Attribute(message, timeout=60))[-1].HasField("finished")
        assert max(kept for kept, _ in held) <= bound
        assert max(count for _, count in held) > 1
        raw.open_window(streams[0], 1 << 24)
        assert b"grpc-status\x0210" in raw.frames_until_closed(streams[0])  # ABORTED
        assert list(service.Attribute(message, timeout=60))[-1].HasField("finished")


def parts(responses) -> list[tuple[int, list[int]]]:
    """Which parts of encoder self-attention have come."""
    return [
        (response.encoder_self.first_query, list(response.encoder_self.attention.shape))
        for response in responses
        if response.HasField("encoder_self")
    ]


def test_a_stream_of_requests_that_stops_in_the_middle_of_one_has_an_end(bundled, monkeypatch):
    """Reflection's: a whole request, and half of the next."""
    from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

    monkeypatch.setattr(calls_module, "_MAX_ARRIVAL_SECONDS", 1.0)
    whole = ServerReflectionRequest(list_services="").SerializeToString()
    with serving(bundled) as address, RawConnection(address, window=1 << 20) as raw:
        second = b"\x00" + (1000).to_bytes(4, "big") + b"\x12" * 10
        stream = raw.call(REFLECTION, whole + second, of=len(whole))
        received = raw.frames_until_closed(stream)
        assert b"sidelight.v1.AttributionService" in received
        assert b"has not arrived" in received


def test_half_a_request_is_not_held_for_ever(bundled, monkeypatch):
    monkeypatch.setattr(calls_module, "_MAX_ARRIVAL_SECONDS", 1.0)
    with serving(bundled) as address, contextlib.ExitStack() as stack, stub(address) as service:
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
            assert late or (method.endswith(("Align", "Follow", "Many")) and b"grpc-status\x0212" in received), method
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
