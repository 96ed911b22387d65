"""What the engine holds for slow readers, attention and caches, has a bound of bytes."""

from __future__ import annotations

import contextlib
import time

import grpc
import pytest
from harness import CROSS, DECODER_SELF, ENCODER_SELF, request, serving, steps_of, stub, wait_until
from hostile_clients import ATTRIBUTE, NARROW, long_request
from raw_http2 import RawConnection
from sidelight.server.engine import output_queue, preemption
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.engine.outputs import output_builder
from sidelight.server.engine.request_state import RequestState
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text


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


def test_slow_readers_of_a_model_without_slots_keep_their_requests(zoo, engines, monkeypatch):
    """They slow no step of others. Only where others need their places do they give way."""
    monkeypatch.setattr(output_queue, "CAPACITY", 2048)
    monkeypatch.setattr(RequestState.is_slow, "__defaults__", (0.02,))
    monkeypatch.setattr(preemption, "_LONG_SLOW_SECONDS", 0.05)
    decoding = text.Decoding(max_new_tokens=30, ignore_eos=True)
    message = request("The lazy dog sleeps all day.", kinds=[CROSS, DECODER_SELF], decoding=decoding)
    limits, loaded = EngineConfig(max_running=8), zoo("fsmt")
    with serving(loaded, limits=limits) as address, stub(address) as service, contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(address, options=NARROW)) for _ in range(3)]
        slow = [services.AttributionServiceStub(channel).Attribute(message, timeout=60) for channel in channels]
        wait_until(lambda: sum(state.is_blocked for state in engines[0]._admission._states) == 3)
        for _ in range(3):
            assert len(steps_of(list(service.Attribute(message, timeout=60)))) == 30
            time.sleep(0.1)
        assert all(len(steps_of(list(call))) == 30 for call in slow)


@pytest.mark.slow
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
