"""Servers on sockets, for tests: each server has an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import grpc
from sidelight.server.api.server import Server
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.models.loader import LoadedModel
from sidelight.server.operations import CallLimits, MetricsServer, Security, Telemetry
from sidelight.v1 import attention_pb2, attribution_service_pb2, attribution_service_pb2_grpc

CROSS = attention_pb2.ATTENTION_KIND_CROSS
DECODER_SELF = attention_pb2.ATTENTION_KIND_DECODER_SELF
ENCODER_SELF = attention_pb2.ATTENTION_KIND_ENCODER_SELF

# By how many front ends `serving` serves: pytest's option --front-ends.
num_front_ends = 1


@contextmanager
def serving(
    *models: LoadedModel,
    limits: EngineConfig | None = None,
    security: Security | None = None,
    telemetry: Telemetry | None = None,
    metrics: MetricsServer | None = None,
    call_limits: CallLimits | None = None,
) -> Iterator[str]:
    """Serves models; gives the address. `metrics` is closed at the end."""
    if num_front_ends > 1 and telemetry is None:
        from front_ends import serving_by_front_ends

        with serving_by_front_ends(
            *models, count=num_front_ends, limits=limits, security=security, metrics=metrics, call_limits=call_limits
        ) as address:
            yield address
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server loop")
    thread.start()

    async def start() -> tuple[Server, str]:
        server = Server(models, "127.0.0.1:0", limits, security, telemetry, call_limits)
        return server, await server.start()

    try:
        server, address = asyncio.run_coroutine_threadsafe(start(), loop).result(240)
        if metrics is not None:
            metrics.start(server.method_metrics, server.model_metrics, lambda: server.is_serving)
        try:
            yield address
        finally:
            if metrics is not None:
                metrics.close()
            asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def stub(address: str) -> Iterator[attribution_service_pb2_grpc.AttributionServiceStub]:
    """The generated stub, as clients in other languages have it, with a connection of its own."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield attribution_service_pb2_grpc.AttributionServiceStub(channel)


def request(
    text: str, kinds: Sequence[attention_pb2.AttentionKind.ValueType] = (), **fields: object
) -> attribution_service_pb2.AttributeRequest:
    """A request with a source text. `fields` are other fields of AttributeRequest."""
    message = attribution_service_pb2.AttributeRequest(**fields)
    message.source.text = text
    message.capture.kinds.extend(kinds)
    return message


def steps_of(responses: Sequence[attribution_service_pb2.AttributeResponse]) -> list[attribution_service_pb2.Step]:
    """All steps of a stream, in order."""
    return [step for response in responses for step in response.steps.steps]


def wait_until(condition: Callable[[], object]) -> None:
    """Waits until a condition is true. Fails after a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
