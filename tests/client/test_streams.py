"""Streams and errors, against a fake server that can wait, fail and break the contract."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from fake_server import expected_answer
from sidelight.client import (
    AsyncClient,
    Attribution,
    CancelledError,
    Capture,
    Client,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SidelightError,
    errors,
)

TEXT = "one two three"
EVERYTHING = Capture(kinds=("cross", "decoder_self", "encoder_self"))


def attribute_sync(address: str, text: str, options: Any) -> Attribution:
    with Client(address) as client:
        return client.attribute(text, **options).result()


def attribute_async(address: str, text: str, options: Any) -> Attribution:
    async def run() -> Attribution:
        async with AsyncClient(address) as client:
            return await client.attribute(text, **options).result()

    return asyncio.run(run())


with_both_clients = pytest.mark.parametrize("attribute", [attribute_sync, attribute_async])
Attribute = Callable[[str, str, Any], Attribution]


@with_both_clients
def test_a_result_holds_all_that_was_sent(fake, attribute: Attribute):
    options = {"capture": EVERYTHING, "scores": ["probability"], "request_id": "r-7", "timeout": 30}
    result = attribute(fake.address, TEXT, options)
    answer = expected_answer(TEXT)
    np.testing.assert_array_equal(result.cross, answer.cross)
    np.testing.assert_array_equal(result.decoder_self, answer.decoder_self)
    np.testing.assert_array_equal(result.encoder_self, answer.encoder_self)
    np.testing.assert_array_equal(result.scores["probability"], answer.probability)
    assert [token.piece for token in result.source] == ["▁one", "▁two", "▁three", "</s>"]
    assert [token.piece for token in result.decoder_positions] == ["<pad>", "▁eno", "▁owt", "▁eerht", "</s>"]
    assert result.text == "eno owt eerht"
    assert result.stop_reason == "end_token"
    assert result.started.request_id == "r-7"
    assert result.usage.total_time == 0.25
    assert result.layouts["cross"].shape == (2, 3)


@with_both_clients
def test_a_decoder_only_result(fake, attribute: Attribute):
    result = attribute(fake.address, TEXT, {"model": "teller"})
    assert result.cross is None
    np.testing.assert_array_equal(result.decoder_self, expected_answer(TEXT, decoder_only=True).decoder_self)
    assert result.started.first_position == 3
    assert [token.text for token in result.context] == ["one", "two", "three"]


def keep_top_k(values: np.ndarray, count: int, axis: int) -> np.ndarray:
    """Keeps the greatest values of each row at their positions; all others become 0. NaN stays."""
    least = -np.sort(-values, axis).take([count - 1], axis)  # sorting puts NaN behind all numbers
    return np.where(values < least, 0, values)


@with_both_clients
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize(("encoding", "tolerance"), [("float32", 0), ("float16", 1e-3), ("uint8", 1 / 500)])
def test_arrays_have_all_positions_in_every_encoding(fake, attribute: Attribute, encoding, tolerance, top_k):
    capture = dataclasses.replace(EVERYTHING, encoding=encoding, top_k=top_k)
    result = attribute(fake.address, TEXT, {"capture": capture, "timeout": 30})
    answer = expected_answer(TEXT)
    assert fake.requests[0].capture.top_k == result.started.top_k == top_k
    for kind, axis in (("cross", 0), ("decoder_self", 0), ("encoder_self", 1)):
        actual, expected = getattr(result, kind), getattr(answer, kind)
        assert actual.dtype == ("float16" if encoding == "float16" else "float32")
        if top_k:
            expected = keep_top_k(expected, top_k, axis)
            np.testing.assert_array_equal(actual == 0, expected == 0)
        np.testing.assert_allclose(actual, expected, atol=tolerance, rtol=0)


@with_both_clients
def test_a_given_target_and_no_attention(fake, attribute: Attribute):
    result = attribute(fake.address, TEXT, {"target": "ein zwei", "capture": Capture(none=True)})
    assert (result.cross, result.decoder_self, result.encoder_self) == (None, None, None)
    assert [token.text for token in result.steps] == ["ein", "zwei", ""]
    assert result.stop_reason == "given"
    (request,) = fake.requests
    assert request.given.text == "ein zwei"
    assert request.capture.none


@with_both_clients
def test_a_resumed_stream_knows_where_it_is(fake, attribute: Attribute):
    result = attribute(fake.address, TEXT, {"capture": EVERYTHING, "resume_at": 2})
    answer = expected_answer(TEXT)
    assert result.first_step == 2
    np.testing.assert_array_equal(result.cross, answer.cross[:, 2:])
    np.testing.assert_array_equal(result.decoder_self, answer.decoder_self[:, 2:])
    assert [token.piece for token in result.decoder_positions] == ["<pad>", "…", "…", "▁eerht", "</s>"]


@with_both_clients
def test_all_options_are_in_the_request(fake, attribute: Attribute):
    attribute(
        fake.address,
        TEXT,
        {
            "model": "reverser",
            "source_language": "eng_Latn",
            "target_language": "deu_Latn",
            "prefix": [5, 6],
            "resume_at": 2,
            "score_top_p": 0.5,
        },
    )
    (request,) = fake.requests
    assert (request.source_language, request.target_language) == ("eng_Latn", "deu_Latn")
    assert list(request.prefix.token_ids.ids) == [5, 6]
    assert (request.resume_at, request.score_top_p) == (2, 0.5)
    assert not request.HasField("capture")
    assert request.WhichOneof("target") is None


@with_both_clients
def test_errors_carry_all_details(fake, attribute: Attribute):
    with pytest.raises(InvalidArgumentError) as error_info:
        attribute(fake.address, "fail now", {"request_id": "r-8"})
    error = error_info.value
    assert error.status == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == {"capture.kinds": "is odd", "source": "is dull; is long"}
    assert (error.field, error.reason, error.request_id) == ("capture.kinds", "ODD", "r-8")
    assert error.retry_delay is None
    assert str(error) == "odd request"
    assert len({error, error}) == 1  # hashable, as exceptions are
    with pytest.raises(ResourceExhaustedError) as error_info:
        attribute(fake.address, "busy now", {})
    assert error_info.value.retry_delay == 1.5


@with_both_clients
def test_responses_that_do_not_fit_the_contract(fake, attribute: Attribute):
    with pytest.raises(InternalError, match="does not fit the contract"):
        attribute(fake.address, "broken now", {})
    with pytest.raises(InternalError, match="contract: position 4000000000 is out of range: there are 3"):
        attribute(fake.address, "nowhere now", {"capture": Capture(top_k=2)})
    with pytest.raises(SidelightError, match="cut off before its end") as error_info:
        attribute(fake.address, "cut off", {})
    assert error_info.value.status == grpc.StatusCode.DATA_LOSS


@with_both_clients
@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_an_invalid_timeout_is_refused_without_a_server(fake, attribute: Attribute, timeout: float):
    with pytest.raises(InvalidArgumentError) as error_info:
        attribute(fake.address, TEXT, {"timeout": timeout})
    assert error_info.value.field == "timeout"
    assert not fake.requests


def test_steps_arrive_before_the_rest_exists(fake):
    with Client(fake.address) as client, client.attribute("hang on") as stream:
        assert next(stream).token.text == "gnah"
        assert not fake.cancelled.is_set()
    assert fake.cancelled.wait(10)  # the end of the block has cancelled the call


def test_leaving_a_block_by_an_exception_cancels(fake):
    with Client(fake.address) as client:
        stream = client.attribute("hang on")

        def interrupted() -> None:
            with stream:
                next(stream)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert fake.cancelled.wait(10)
        with pytest.raises(CancelledError):
            stream.result()


def test_closing_the_client_ends_its_streams(fake):
    client = Client(fake.address)
    stream = client.attribute("hang on")
    next(stream)
    closing = threading.Timer(0.2, client.close)
    closing.start()
    with pytest.raises(CancelledError):
        next(stream)
    closing.join()
    assert fake.cancelled.wait(10)
    for call in (lambda: client.attribute(TEXT), client.get_model, client.list_models):
        with pytest.raises(CancelledError, match="closed"):
            call()


async def test_closing_the_asyncio_client_ends_its_streams(fake):
    client = AsyncClient(fake.address)
    stream = client.attribute("hang on")
    assert (await anext(stream)).index == 0
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.1)
    await client.close()
    with pytest.raises(CancelledError):
        await reading
    assert await asyncio.to_thread(fake.cancelled.wait, 10)
    with pytest.raises(CancelledError, match="closed"):
        client.attribute(TEXT)
    with pytest.raises(CancelledError, match="closed"):
        await client.get_model()


async def test_cancelling_an_asyncio_stream_does_not_cancel_its_task(fake):
    async with AsyncClient(fake.address) as client, client.attribute("hang on") as stream:
        await anext(stream)
        asyncio.get_running_loop().call_later(0.1, stream.cancel)
        with pytest.raises(CancelledError):
            await anext(stream)
    assert await asyncio.to_thread(fake.cancelled.wait, 10)


async def test_cancelling_a_task_cancels_its_call(fake):
    async with AsyncClient(fake.address) as client:
        stream = client.attribute("hang on")
        task = asyncio.create_task(stream.result())
        while not fake.requests:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the first step has arrived, the second will not
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await asyncio.to_thread(fake.cancelled.wait, 10)


def test_a_deadline_ends_a_stream(fake):
    began = time.monotonic()
    with Client(fake.address) as client, pytest.raises(errors.DeadlineExceededError):
        client.attribute("hang on", timeout=0.5).result()
    assert time.monotonic() - began < 5


def test_models_are_listed_over_all_pages(fake):
    with Client(fake.address) as client:
        assert [model.name for model in client.list_models()] == ["reverser", "teller"]
        assert not client.get_model("teller").is_encoder_decoder
        with pytest.raises(NotFoundError) as error_info:
            client.get_model("nobody")
    assert (error_info.value.field, error_info.value.reason) == ("name", "UNKNOWN_MODEL")


async def test_models_are_listed_over_all_pages_with_asyncio(fake):
    async with AsyncClient(fake.address) as client:
        assert [model.name for model in await client.list_models()] == ["reverser", "teller"]
        with pytest.raises(NotFoundError):
            await client.get_model("nobody")


def test_every_status_becomes_an_exception_of_this_package():
    for code in grpc.StatusCode:
        exception = errors.from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "no"))
        assert isinstance(exception, SidelightError)
        assert exception.status is code


def test_details_that_cannot_be_parsed_are_left_out():
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    exception = errors.from_rpc_error(
        grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), trailers, "no")
    )
    assert (type(exception), exception.field, str(exception)) == (InternalError, "", "no")
