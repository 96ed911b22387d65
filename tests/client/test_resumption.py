"""Streams that break go on, on another server: no step is missing, none comes twice, and all rows are the same."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from cutting_proxy import CuttingProxy
from harness import serving
from sidelight.client import (
    AsyncClient,
    Attribution,
    CancelledError,
    Capture,
    Client,
    Decoding,
    InvalidArgumentError,
    Sampling,
    Step,
    UnavailableError,
)
from sidelight.client import resumption as resumption_module
from sidelight.client.errors import from_rpc_error
from sidelight.client.resumption import Resumption
from sidelight.server.api.server import Server

TEXT = "My grandmother is still vigorous at 82 years old."
EVERYTHING = Capture(kinds=("cross", "decoder_self", "encoder_self"))


@pytest.fixture(scope="module")
def servers(bundled, bundled_server) -> Iterator[list[str]]:
    """Two servers on one model."""
    with serving(bundled) as other:
        yield [bundled_server, other]


@pytest.fixture(autouse=True)
def no_delays(monkeypatch):
    monkeypatch.setattr(resumption_module, "_FIRST_DELAY", 0.01)


DECODINGS: dict[str, dict[str, Any]] = {
    "greedy": {"decoding": Decoding(max_new_tokens=120, ignore_eos=True)},
    "sampled, the server's seed": {"decoding": Decoding(Sampling(), max_new_tokens=120, ignore_eos=True)},
    "given": {"target": "Meine Großmutter ist mit 82 Jahren noch rüstig. " * 8},
}


def assert_same(result: Attribution, expected: Attribution) -> None:
    assert result.steps == expected.steps
    assert (result.text, result.stop_reason, result.first_step) == (expected.text, expected.stop_reason, 0)
    for kind in EVERYTHING.kinds:
        np.testing.assert_allclose(getattr(result, kind), getattr(expected, kind), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", DECODINGS)
def test_a_broken_stream_goes_on_with_the_same_rows(servers, kind):
    options = {"capture": EVERYTHING, **DECODINGS[kind]}
    with CuttingProxy(servers, 60_000, 3) as proxy, Client(proxy.address) as client, Client(servers[0]) as direct:
        stream = client.attribute(TEXT, resume=3, timeout=60, **options)
        steps = list(stream)
        assert [step.index for step in steps] == list(range(len(steps)))
        result = stream.result()
        assert proxy.num_connections == 4
        if result.started.seed is not None:
            options["decoding"] = Decoding(Sampling(seed=result.started.seed), max_new_tokens=120, ignore_eos=True)
        assert_same(result, direct.attribute(TEXT, **options).result())


async def test_a_broken_asyncio_stream_goes_on_with_the_same_rows(servers):
    options = {"capture": EVERYTHING, **DECODINGS["greedy"]}
    with CuttingProxy(servers, 60_000, 3) as proxy:
        async with AsyncClient(proxy.address) as client, AsyncClient(servers[0]) as direct:
            result = await client.attribute(TEXT, resume=1, timeout=60, **options).result()
            assert proxy.num_connections == 4
            assert_same(result, await direct.attribute(TEXT, **options).result())


SOURCES = [f"{TEXT} {number}" for number in range(12)]


def test_a_broken_stream_of_many_texts_goes_on(servers):
    options = {"capture": EVERYTHING, "decoding": Decoding(Sampling(), max_new_tokens=40, ignore_eos=True)}
    seen: dict[int, list[int]] = {}
    with CuttingProxy(servers, 200_000, 3) as proxy, Client(proxy.address) as client, Client(servers[0]) as direct:
        with client.attribute_many(
            SOURCES,
            resume=3,
            timeout=60,
            on_step=lambda index, step: seen.setdefault(index, []).append(step.index),
            **options,
        ) as stream:
            results = [result.get() for result in stream]
        assert proxy.num_connections == 4
        assert seen == {number: list(range(40)) for number in range(12)}
        for source, result in zip(SOURCES, results, strict=True):
            decoding = Decoding(Sampling(seed=result.started.seed), max_new_tokens=40, ignore_eos=True)
            assert_same(result, direct.attribute(source, capture=EVERYTHING, decoding=decoding).result())


@pytest.mark.slow
async def test_a_broken_asyncio_stream_of_many_texts_goes_on(servers):
    options = {"capture": EVERYTHING, "decoding": Decoding(max_new_tokens=40, ignore_eos=True)}
    with CuttingProxy(servers, 200_000, 3) as proxy:
        async with AsyncClient(proxy.address) as client, AsyncClient(servers[0]) as direct:
            async with client.attribute_many(SOURCES, resume=3, max_running=5, **options) as stream:
                results = [result.get() async for result in stream]
            assert proxy.num_connections == 4
            for source, result in zip(SOURCES, results, strict=True):
                assert_same(result, await direct.attribute(source, **options).result())


@pytest.mark.parametrize("many", [False, True])
def test_tries_come_to_an_end(servers, many):
    with CuttingProxy(servers, 0, 100) as proxy, Client(proxy.address) as client:
        with pytest.raises(UnavailableError):
            next(iter(client.attribute_many([TEXT], resume=2))) if many else client.attribute(TEXT, resume=2).result()
        assert 1 <= proxy.num_connections <= 3
        with pytest.raises(InvalidArgumentError, match="resume"):
            client.attribute_many([TEXT], resume=-1) if many else client.attribute(TEXT, resume=-1)


def test_errors_that_are_no_break_are_not_tried_again(fake):
    with Client(fake.address) as client:
        for fault, error in (("gone", grpc.StatusCode.NOT_FOUND), ("crash", grpc.StatusCode.INTERNAL)):
            with pytest.raises(Exception) as raised:  # noqa: PT011
                client.attribute(f"{fault} now", resume=3).result()
            assert raised.value.status is error
    assert len(fake.requests) == 2


def test_a_pause_between_two_tries_ends_with_the_stream(monkeypatch):
    monkeypatch.setattr(resumption_module, "_FIRST_DELAY", 60.0)
    monkeypatch.setattr(resumption_module, "_MAX_DELAY", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"127.0.0.1:{port}") as client:
        stream = client.attribute(TEXT, resume=3)
        canceller = threading.Timer(1.0, stream.cancel)
        canceller.start()
        with pytest.raises(CancelledError):
            stream.result()
        canceller.join()


async def test_a_server_that_ends_hands_its_texts_to_the_next(bundled, bundled_server):
    """The stream ends with SHUTTING_DOWN, and its texts go on where the proxy leads next."""
    server = Server([bundled], "127.0.0.1:0")
    proxy_servers = [await server.start(), bundled_server]
    stopping: list[asyncio.Task[None]] = []

    def stop(_index: int, _step: Step) -> None:
        if not stopping:
            stopping.append(asyncio.create_task(server.stop(0)))

    decoding = Decoding(max_new_tokens=100, ignore_eos=True)
    with CuttingProxy(proxy_servers, 0, 0) as proxy:
        async with (
            AsyncClient(proxy.address) as client,
            client.attribute_many(SOURCES, resume=3, decoding=decoding, on_step=stop) as stream,
        ):
            results = [result.get() async for result in stream]
        assert proxy.num_connections == 2
    assert [len(result.steps) for result in results] == [100] * 12
    await stopping[0]


@pytest.mark.parametrize("status", [grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL])
def test_a_stream_that_a_proxy_has_reset_is_broken(status):
    """HAProxy resets streams whose server has ended. tests/faults/test_ray.py has HAProxy itself."""
    details = "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))"
    error = from_rpc_error(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), details))
    assert isinstance(error, UnavailableError)
    assert Resumption(1, None).covers(error)
    own = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), "Locally cancelled by application!")
    assert not Resumption(1, None).covers(from_rpc_error(own))
