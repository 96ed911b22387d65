"""Many requests at the same time are validated in turn, and served or refused with a reason."""

from __future__ import annotations

import asyncio
import collections
import threading
import time

import grpc
import pytest
from harness import request, serving, wait_until
from hostile_clients import reason_of_aio
from sidelight.server.api.rpcs import answer as answer_module
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.text import tokenizer_pool
from sidelight.v1 import attribution_service_pb2_grpc as services
from sidelight.v1 import text_pb2 as text


@pytest.mark.slow
async def test_two_thousand_at_once_are_served_or_refused_with_a_reason(bundled, monkeypatch):
    """gRPC itself cancels some requests without a status if more than a thousand wait for a handler."""
    validated = []
    validate_request = answer_module.validate_request
    monkeypatch.setattr(answer_module, "validate_request", lambda *args: validated.append(1) or validate_request(*args))
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


async def test_short_texts_go_before_long_ones(bundled, monkeypatch):
    """Texts that are validated in threads, two at a time. All others come while the first two are validated."""
    monkeypatch.setattr(answer_module, "_SHORT_BYTES", 0)
    monkeypatch.setattr(tokenizer_pool, "_BYTES_PER_SECOND", 16)
    arrived, started, ended = [], [], []
    has_cancelled, may_begin = threading.Event(), threading.Event()
    validate, validate_request = answer_module.validate, answer_module.validate_request

    async def noting(*args):
        arrived.append(args)
        try:
            return await validate(*args)
        except asyncio.CancelledError:
            has_cancelled.set()
            raise

    def slow(message, *args):
        started.append(len(message.source.text))
        assert may_begin.wait(60)
        time.sleep(0.01)
        ended.append(len(message.source.text))
        assert len(started) - len(ended) < 2
        return validate_request(message, *args)

    monkeypatch.setattr(answer_module, "validate", noting)
    monkeypatch.setattr(answer_module, "validate_request", slow)
    texts = ["dog " * 200] * 12 + ["A dog."] * 4
    with serving(bundled) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            service = services.AttributionServiceStub(channel)

            async def one(content: str) -> None:
                async for _ in service.Attribute(
                    request(content, decoding=text.Decoding(max_new_tokens=1)), timeout=60
                ):
                    pass

            calls = [asyncio.create_task(one(content)) for content in texts[:2]]
            await asyncio.to_thread(wait_until, lambda: len(started) == 2)
            calls += [asyncio.create_task(one(content)) for content in texts[2:]]
            await asyncio.to_thread(wait_until, lambda: len(arrived) == 16)
            calls[9].cancel()  # a cancelled request is not validated
            await asyncio.to_thread(wait_until, has_cancelled.is_set)
            may_begin.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, BaseException) for result in results) == 1
    assert len(started) == 15
    assert max(place for place, length in enumerate(started) if length < 10) < 6
