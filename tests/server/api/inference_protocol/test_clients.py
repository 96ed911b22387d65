"""Triton's client from PyPI, unchanged: blocking, asyncio and streaming."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from harness import request, serving, stub
from hostile_clients import SENTENCE
from inference_stubs import MODEL, infer_request, inference_stub, tensors_of
from sidelight.open_inference import grpc_service_pb2 as oip

triton = pytest.importorskip("tritonclient.grpc")
triton_aio = pytest.importorskip("tritonclient.grpc.aio")
InferenceServerException = pytest.importorskip("tritonclient.utils").InferenceServerException
TEXTS = [SENTENCE, "A dog."]


def texts_input(client: Any = triton, texts: tuple[str, ...] = tuple(TEXTS)) -> Any:
    tensor = client.InferInput("text_input", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array(texts, object))
    return tensor


@pytest.fixture
def client(bundled_server) -> Iterator[Any]:
    with triton.InferenceServerClient(bundled_server) as client:
        yield client


@pytest.fixture(scope="module")
def whole(bundled_server) -> dict[str, Any]:
    """What a raw call answers, which other tests compare with Attribute."""
    with inference_stub(bundled_server) as service:
        message = infer_request(*TEXTS, outputs=["text_output", "links", "cross_attention"])
        return tensors_of(service.ModelInfer(message, timeout=60))


def assert_same(result: Any, whole: dict[str, Any]) -> None:
    for name in ("text_output", "links"):
        assert [text.decode() for text in result.as_numpy(name)] == whole[name]
    np.testing.assert_allclose(result.as_numpy("cross_attention"), whole["cross_attention"], atol=1e-5)


def test_the_messages_are_beside_those_of_triton():
    from tritonclient.grpc import service_pb2

    assert service_pb2.ModelInferRequest.DESCRIPTOR.full_name == oip.ModelInferRequest.DESCRIPTOR.full_name
    assert service_pb2.ModelInferRequest is not oip.ModelInferRequest


@pytest.mark.parametrize("name", [message.name for message in oip.DESCRIPTOR.message_types_by_name.values()])
def test_the_messages_have_the_fields_of_triton(name):
    from tritonclient.grpc import service_pb2

    def fields(descriptor) -> set[tuple[object, ...]]:
        named = {(field.name, field.number, field.type, field.is_repeated) for field in descriptor.fields}
        return named | {(nested.name, *fields(nested)) for nested in descriptor.nested_types}

    assert fields(getattr(oip, name).DESCRIPTOR) == fields(getattr(service_pb2, name).DESCRIPTOR)


def test_a_client_asks_for_states_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert client.get_server_metadata().name == "sidelight"
    assert client.get_model_metadata(MODEL, as_json=True)["inputs"][0]["datatype"] == "BYTES"
    with pytest.raises(InferenceServerException, match="no model of that name"):
        client.get_model_metadata("other")


def test_a_blocking_call(client, whole):
    outputs = [triton.InferRequestedOutput(name) for name in whole]
    assert_same(client.infer(MODEL, [texts_input()], outputs=outputs, request_id="blocking"), whole)
    short = client.infer(MODEL, [texts_input()], parameters={"max_new_tokens": 2}, timeout=60_000_000)
    assert short.as_numpy("target_lengths").tolist() == [2, 2]
    with pytest.raises(InferenceServerException, match="no output of this model"):
        client.infer(MODEL, [texts_input()], outputs=[triton.InferRequestedOutput("OUTPUT0")])


async def test_an_asyncio_call(bundled_server, whole):
    async with triton_aio.InferenceServerClient(bundled_server) as client:
        outputs = [triton_aio.InferRequestedOutput(name) for name in whole]
        assert_same(await client.infer(MODEL, [texts_input(triton_aio)], outputs=outputs), whole)


def test_a_stream(client, whole):
    results: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    outputs = [triton.InferRequestedOutput("text_output")]
    client.async_stream_infer("other", [texts_input()], request_id="unknown")
    fields = {"outputs": outputs, "enable_empty_final_response": True}
    client.async_stream_infer(MODEL, [texts_input()], request_id="streamed", **fields)
    pieces, errors = ["", ""], []
    while True:
        result, error = results.get(timeout=60)
        if error is not None:
            errors.append(str(error))
            continue
        parameters = result.get_response().parameters
        if parameters["triton_final_response"].bool_param:
            break
        pieces[parameters["text_index"].int64_param] += result.as_numpy("text_output")[0].decode()
    client.stop_stream()
    assert pieces == whole["text_output"]
    assert len(errors) == 1
    assert "no model of that name" in errors[0]


async def test_an_asyncio_stream(bundled_server, whole):
    async def requests():
        for number in range(3):
            yield {
                "model_name": MODEL,
                "inputs": [texts_input(triton_aio, (TEXTS[1],))],
                "outputs": [triton_aio.InferRequestedOutput("text_output")],
                "request_id": str(number),
            }

    pieces = dict.fromkeys("012", "")
    async with triton_aio.InferenceServerClient(bundled_server) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            pieces[result.get_response().id] += result.as_numpy("text_output")[0].decode()
    assert pieces == dict.fromkeys("012", whole["text_output"][1])


def test_tokens_are_asked_for_and_probes_need_none(bundled, security, token_metadata):
    headers = {"someone": dict(token_metadata["someone"]), "": dict(token_metadata[""])}
    with serving(bundled, security=security) as address, triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        for refused in (None, headers[""]):
            for call in (
                lambda: client.infer(MODEL, [texts_input()], headers=refused),  # noqa: B023
                lambda: client.get_model_metadata(MODEL, headers=refused),  # noqa: B023
                lambda: client.get_server_metadata(headers=refused),  # noqa: B023
            ):
                with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                    call()
        result = client.infer(MODEL, [texts_input()], headers=headers["someone"])
        with stub(address) as ours:
            events = list(ours.Attribute(request(SENTENCE), metadata=token_metadata["someone"], timeout=60))
        assert result.as_numpy("text_output")[0].decode() == events[-1].finished.text
