"""Many texts on one stream, by both clients: order, live steps, errors of single texts, cancelling."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from harness import wait_until
from sidelight.client import (
    AlignAtt,
    AsyncClient,
    CancelledError,
    Client,
    Decoding,
    InvalidArgumentError,
    ManyResult,
    NotFoundError,
    SidelightError,
)

SENTENCES = [
    "I don't want to be your friend.",
    "Where is the nearest train station?",
    "He is a good tennis player.",
    "A dog.",
]
LONG = Decoding(max_new_tokens=200, ignore_eos=True)


def many_sync(address: str, sources: Any, options: Any) -> list[ManyResult]:
    with Client(address) as client:
        return list(client.attribute_many(sources, **options))


def many_async(address: str, sources: Any, options: Any) -> list[ManyResult]:
    async def run() -> list[ManyResult]:
        async with AsyncClient(address) as client:
            return [result async for result in client.attribute_many(sources, **options)]

    return asyncio.run(run())


with_both_clients = pytest.mark.parametrize("many", [many_sync, many_async])
Many = Callable[[str, Any, Any], list[ManyResult]]


@with_both_clients
def test_results_are_those_of_single_calls_in_the_order_of_the_sources(bundled_server, many: Many):
    sources = SENTENCES * 12
    steps: dict[int, list[int]] = {}
    options = {
        "scores": ["probability"],
        "max_running": 7,
        "on_step": lambda index, step: steps.setdefault(index, []).append(step.token.id),
    }
    results = many(bundled_server, iter(sources), options)
    assert [result.index for result in results] == list(range(48))
    with Client(bundled_server) as client:
        alone = [client.attribute(source, scores=["probability"]).result() for source in SENTENCES]
    for number, result in enumerate(results):
        expected = alone[number % 4]
        attribution = result.get()
        assert attribution.steps == expected.steps
        assert steps[number] == [token.id for token in expected.steps]
        # The last bits depend on the other texts of a batch.
        np.testing.assert_allclose(attribution.cross, expected.cross, atol=1e-5)
        np.testing.assert_allclose(attribution.scores["probability"], expected.scores["probability"], atol=1e-5)


@with_both_clients
def test_results_come_as_texts_end_if_asked_for(bundled_server, many: Many):
    sources = [("A dog.", {"decoding": LONG}), *SENTENCES]
    results = many(bundled_server, sources, {"ordered": False})
    assert sorted(result.index for result in results) == list(range(5))
    assert results[-1].index == 0


@with_both_clients
def test_sources_have_options_of_their_own(fake, many: Many):
    chat = ({"role": "user", "content": "one two"}, {"role": "user", "content": "three"})
    sources = ["one two", ("three", {"target": "four five", "request_id": "mine"}), chat, [5, 6]]
    results = many(fake.address, sources, {"request_id": "all-", "model": "reverser"})
    assert [result.get().text for result in results[:2]] == ["eno owt", "four five"]
    assert {request.request_id for request in fake.requests} == {"all-0", "mine", "all-2", "all-3"}
    assert {request.model for request in fake.requests} == {"reverser"}
    assert [len(request.source.chat.messages) for request in fake.requests if request.source.HasField("chat")] == [2]


@with_both_clients
def test_a_text_that_fails_has_its_error_and_the_others_go_on(fake, many: Many):
    sources = ["one two", "wrong now", "busy now", "broken one two", "cut one", 7, "x" * (5 << 20), "three"]
    results = many(fake.address, sources[:4] + sources[5:], {})
    assert results[0].get().text == "eno owt"
    assert results[-1].get().text == "eerht"
    wrong, busy, broken, number, large = (result.error for result in results[1:-1])
    assert (type(wrong), wrong.field, wrong.fields) == (
        InvalidArgumentError,
        "source.text",
        {"source.text": "is wrong"},
    )
    assert (busy.reason, busy.retry_delay, busy.status) == ("QUEUE_FULL", 1.5, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "does not fit the contract" in broken.message
    assert number.field == "source"
    assert "4 MiB" in large.message
    with pytest.raises(InvalidArgumentError):
        results[1].get()


@with_both_clients
def test_wrong_options_are_refused_before_anything_is_sent(fake, many: Many):
    for options in ({"max_runing": 3}, {"max_running": 0}, {"resume": -1}, {"timeout": -1.0}, {"capture": 3}):
        with pytest.raises(InvalidArgumentError):
            many(fake.address, ["one"], options)
    assert not fake.requests


@with_both_clients
def test_an_error_of_the_sources_comes_after_the_results_before_it(fake, many: Many):
    def sources():
        yield "one two"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        many(fake.address, sources(), {})


@with_both_clients
def test_each_text_has_its_time(bundled_server, many: Many):
    results = many(bundled_server, ["A dog.", ("A cat.", {"timeout": 1e-9})], {"timeout": 60})
    assert results[0].error is None
    assert results[1].error is not None
    assert results[1].error.status is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_text_is_cancelled_by_its_index_and_by_its_id(bundled_server):
    with Client(bundled_server) as client:
        stream: Any = None

        def cancel(index: int, step: Any) -> None:
            if step.index == 5 and index == 1:
                stream.cancel_text(1)
            if step.index == 5 and index == 2:
                assert client.cancel_attribution("many-2") == 1

        stream = client.attribute_many(["A dog."] * 4, decoding=LONG, request_id="many-", on_step=cancel)
        results = list(stream)
        assert [type(result.error) for result in results] == [type(None), CancelledError, CancelledError, type(None)]
        with pytest.raises(NotFoundError):
            client.cancel_attribution("many-2")
        with pytest.raises(InvalidArgumentError):
            client.cancel_attribution("")


async def test_asyncio_requests_are_cancelled_by_their_id(bundled_server):
    """A status CANCELLED of the server is this package's error, and no cancellation of the task that reads."""
    async with AsyncClient(bundled_server) as client:
        stream = client.attribute("A dog.", decoding=LONG, request_id="alone")
        await anext(stream)
        assert await client.cancel_attribution("alone") == 1
        with pytest.raises(CancelledError) as raised:
            await stream.result()
        assert (raised.value.reason, raised.value.request_id) == ("CANCELLED", "alone")
        many = client.attribute_many(["A dog.", "A cat."], decoding=LONG)
        reading = asyncio.create_task(anext(many))
        while not many._state.num_running:
            await asyncio.sleep(0.01)
        await many.cancel_text(0)
        assert isinstance((await reading).error, CancelledError)
        assert (await anext(many)).error is None


def test_leaving_the_block_cancels_all_texts(fake):
    with Client(fake.address) as client:
        with client.attribute_many(["one two", "hang on now"]) as stream:
            assert next(stream).get().text == "eno owt"
        assert fake.cancelled.wait(30)
        with pytest.raises(CancelledError):
            next(stream)


async def test_a_closed_client_takes_no_texts(fake):
    client, async_client = Client(fake.address), AsyncClient(fake.address)
    client.close()
    await async_client.close()
    with pytest.raises(CancelledError, match=r"^the client is closed$"):
        list(client.attribute_many(["one two"]))
    with pytest.raises(CancelledError, match=r"^the client is closed$"):
        [result async for result in async_client.attribute_many(["one two"])]


async def test_closing_the_asyncio_client_ends_its_streams_of_many(fake):
    async with AsyncClient(fake.address) as client:
        stream = client.attribute_many(["one two", "hang on now"])
        assert (await anext(stream)).get().text == "eno owt"
        reading = asyncio.create_task(anext(stream))
        await asyncio.sleep(0.1)
    with pytest.raises(SidelightError):
        await reading
    await asyncio.to_thread(wait_until, fake.cancelled.is_set)


def test_results_come_while_the_next_source_is_late(fake):
    more = threading.Event()

    def sources():
        yield "one two"
        assert more.wait(30)
        yield "three"

    with Client(fake.address) as client, client.attribute_many(sources()) as stream:
        assert next(stream).get().text == "eno owt"
        more.set()
        assert next(stream).get().text == "eerht"
        with pytest.raises(StopIteration):
            next(stream)


def test_a_stream_can_be_cancelled_while_on_step_waits_for_who_cancels(fake):
    cancelled = threading.Event()

    def wait(*_: object) -> None:
        assert cancelled.wait(30)

    with Client(fake.address) as client:
        stream = client.attribute_many(["one two"] * 3, on_step=wait)

        def read() -> None:
            with pytest.raises(CancelledError):
                list(stream)

        reading = threading.Thread(target=read)
        reading.start()
        wait_until(lambda: stream._state.num_running)
        stream.cancel()
        cancelled.set()
        reading.join(30)
        assert not reading.is_alive()


def client_threads() -> set[threading.Thread]:
    """The threads that send for streams: gRPC's, and those of streams of many texts."""
    names = ("(_run)", "sidelight-attribute-many")
    return {thread for thread in threading.enumerate() if thread.name.endswith(names)}


def test_streams_leave_no_thread_behind(bundled_server):
    before = client_threads()
    with Client(bundled_server) as client:
        finished = client.follow(policy=AlignAtt(words=1), decoding=Decoding())
        finished.add_source("A dog.")
        finished.complete_source()
        assert len(list(finished)) > 3
        wait_until(lambda: client_threads() <= before)
        abandoned = client.follow()
        abandoned.add_source("A dog.")
        next(abandoned)
        many = client.attribute_many(["A dog."] * 100, max_running=2)
        next(many)
        assert client_threads() > before
        del abandoned, many
        gc.collect()
        wait_until(lambda: client_threads() <= before)
        open_stream = client.follow()
        open_stream.add_source("A dog.")
        next(open_stream)
        many = client.attribute_many(["A dog."] * 100, max_running=2)
        next(many)
        assert client_threads() > before
    wait_until(lambda: client_threads() <= before)
    with pytest.raises(CancelledError):
        list(many)


async def test_results_come_while_the_next_source_is_awaited(fake):
    more = asyncio.Event()

    async def sources():
        yield "one two"
        await more.wait()
        yield "three"

    async with AsyncClient(fake.address) as client, client.attribute_many(sources()) as stream:
        assert (await asyncio.wait_for(anext(stream), 30)).get().text == "eno owt"
        more.set()
        assert (await anext(stream)).get().text == "eerht"
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
