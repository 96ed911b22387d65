"""ModelStreamInfer: a response for each step of each text, many requests at the same time, errors by request."""

from __future__ import annotations

import asyncio
import queue
from collections import defaultdict
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from harness import CROSS, request, serving, stub, wait_until
from hostile_clients import NARROW, SENTENCE
from inference_stubs import MODEL, SERVICE, infer_request, inference_stub, tensors_of
from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.server.api.inference_protocol import stream_infer
from sidelight.v1 import attention_pb2
from sidelight.v1 import attribution_service_pb2 as pb

LONG = {"min_new_tokens": 250, "max_new_tokens": 250}
TEXTS = [SENTENCE, "A dog.", "Where is the nearest train station?"]


def stream_request(name: str, *texts: str, **fields) -> oip.ModelInferRequest:
    message = infer_request(*texts, **fields)
    message.id = name
    return message


def run(address: str, *messages: oip.ModelInferRequest) -> dict[str, list[oip.ModelStreamInferResponse]]:
    """The responses of a stream by the ids of their requests."""
    by_id = defaultdict(list)
    with inference_stub(address) as service:
        for response in service.ModelStreamInfer(iter(messages), timeout=120):
            by_id[response.infer_response.id].append(response)
    return by_id


def is_final(response: oip.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


def of_text(responses: list[oip.ModelStreamInferResponse], index: int) -> list[dict]:
    """The tensors of the responses of one text."""
    return [
        tensors_of(response.infer_response)
        for response in responses
        if response.infer_response.parameters["text_index"].int64_param == index
    ]


@pytest.mark.parametrize("raw", [False, True])
def test_each_step_is_that_of_attribute(bundled_server, raw):
    wanted = ["text_output", "target_tokens", "cross_attention", "source_tokens", "links", "stop_reason", "entropy"]
    responses = run(bundled_server, stream_request("a", *TEXTS, outputs=wanted, raw=raw))["a"]
    assert [is_final(response) for response in responses] == [False] * (len(responses) - 1) + [True]
    for index, text in enumerate(TEXTS):
        message = request(text, [CROSS], scores=[attention_pb2.SCORE_ENTROPY])
        message.capture.over_heads = message.capture.over_layers = attention_pb2.REDUCTION_MEAN
        message.link_options.SetInParent()
        with stub(bundled_server) as service:
            events = list(service.Attribute(message, timeout=60))
        steps = [step for event in events for step in event.steps.steps]
        *found, end = of_text(responses, index)
        assert end == {"links": [events[-1].finished.alignment.pharaoh], "stop_reason": ["end_token"]}
        assert len(found) == len(steps)
        assert "".join(each["text_output"][0] for each in found) == events[-1].finished.text
        assert found[0]["source_tokens"] == [[token.piece for token in events[0].started.source]]
        assert not any("source_tokens" in each for each in found[1:])
        for each, step in zip(found, steps, strict=True):
            assert each["target_tokens"] == [[step.token.piece]]
            row = np.frombuffer(step.cross.values, "<f4")
            np.testing.assert_allclose(each["cross_attention"][0, 0], row, atol=1e-5)
            assert each["entropy"][0, 0] == pytest.approx(step.scores[0], abs=1e-4)


def test_steps_count_from_0_in_each_text(bundled_server):
    responses = run(bundled_server, stream_request("a", *TEXTS, outputs=["target_token_ids"]))["a"]
    steps = defaultdict(list)
    for response in responses:
        parameters = response.infer_response.parameters
        steps[parameters["text_index"].int64_param].append(parameters["step"].int64_param)
    assert sorted(steps) == [0, 1, 2]
    assert all(numbers == list(range(len(numbers))) for numbers in steps.values())


def test_many_requests_run_at_the_same_time_and_an_error_ends_one_of_them(bundled_server):
    messages = [stream_request(f"r{number}", *TEXTS[: number % 3 + 1], outputs=["text_output"]) for number in range(30)]
    messages.insert(3, stream_request("bad-text", "A dog.", ""))
    messages.insert(5, stream_request("bad-parameter", "A dog.", max_new_tokens=0))
    unknown = stream_request("unknown", "A dog.")
    unknown.model_name = "other"
    messages.insert(9, unknown)
    by_id = run(bundled_server, *messages)
    errors = {}
    for name in ("bad-text", "bad-parameter", "unknown"):
        (response,) = by_id.pop(name)
        parameters = response.infer_response.parameters
        errors[name] = parameters["error_code"].string_param, parameters["error_field"].string_param
        assert response.error_message.startswith(errors[name][1] + ": ")
        assert is_final(response)
    assert errors == {
        "bad-text": ("INVALID_ARGUMENT", "text_input[1]"),
        "bad-parameter": ("INVALID_ARGUMENT", "parameters[max_new_tokens]"),
        "unknown": ("NOT_FOUND", "model_name"),
    }
    with inference_stub(bundled_server) as service:
        whole = tensors_of(service.ModelInfer(infer_request(*TEXTS), timeout=60))["text_output"]
    assert len(by_id) == 30
    for name, responses in by_id.items():
        for index in range(int(name[1:]) % 3 + 1):
            pieces = [each["text_output"][0] for each in of_text(responses, index)]
            assert "".join(pieces) == whole[index]


def test_an_empty_final_response_comes_where_it_is_asked_for(bundled_server):
    plain = stream_request("plain", "A dog.", outputs=["text_output"])
    asked = stream_request("asked", "A dog.", outputs=["text_output"], triton_enable_empty_final_response=True)
    by_id = run(bundled_server, plain, asked)
    assert not any(map(is_final, by_id["plain"]))
    *steps, final = by_id["asked"]
    assert not any(map(is_final, steps))
    assert is_final(final)
    assert not final.infer_response.outputs
    assert len(steps) == len(by_id["plain"])


def test_a_request_may_ask_for_one_response(bundled_server):
    message = stream_request("whole", *TEXTS, outputs=["text_output", "cross_attention"])
    message.inputs.add(name="stream", datatype="BOOL", shape=[1]).contents.bool_contents.append(False)
    (response,) = run(bundled_server, message)["whole"]
    assert is_final(response)
    with inference_stub(bundled_server) as service:
        expected = tensors_of(service.ModelInfer(infer_request(*TEXTS, outputs=["text_output", "cross_attention"])))
    found = tensors_of(response.infer_response)
    assert found["text_output"] == expected["text_output"]
    np.testing.assert_allclose(found["cross_attention"], expected["cross_attention"], atol=1e-5)


class Requests:
    """Requests that a test sends one by one."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[oip.ModelInferRequest | None] = queue.SimpleQueue()
        self.put = self._queue.put

    def __iter__(self) -> Iterator[oip.ModelInferRequest]:
        while (message := self._queue.get()) is not None:
            yield message


def test_cancellation_by_id_ends_a_request_and_the_stream_goes_on(bundled_server):
    sent = Requests()
    with inference_stub(bundled_server) as service, stub(bundled_server) as ours:
        responses = service.ModelStreamInfer(iter(sent), timeout=120)
        sent.put(stream_request("long", SENTENCE, SENTENCE, **LONG, outputs=["text_output"]))
        assert next(responses).infer_response.id == "long"
        assert ours.CancelAttribution(pb.CancelAttributionRequest(request_id="long"), timeout=60).cancelled == 1
        last = next(response for response in responses if response.error_message)
        assert last.infer_response.parameters["error_code"].string_param == "CANCELLED"
        assert is_final(last)
        sent.put(stream_request("next", "A dog.", outputs=["stop_reason"]))
        sent.put(None)
        assert [response.infer_response.id for response in responses] == ["next"]


def test_a_client_that_goes_leaves_nothing_behind(bundled, engines):
    with serving(bundled) as address, inference_stub(address) as service:
        call = service.ModelStreamInfer(iter([stream_request("a", *[SENTENCE] * 8, **LONG)]), timeout=60)
        next(call)
        call.cancel()
        wait_until(lambda: not engines[0].metrics.read_load().num_running)


async def test_a_client_that_reads_nothing_holds_up_its_own_stream_only(bundled_server, monkeypatch):
    """Requests are read while there is room, so that a client that does not read cannot have all of them run."""
    num_read = 0
    read = stream_infer.read_request

    def counting(*args, **kwargs):
        nonlocal num_read
        num_read += 1
        return read(*args, **kwargs)

    monkeypatch.setattr(stream_infer, "read_request", counting)
    steps = {"min_new_tokens": 30, "max_new_tokens": 30}
    sent = [stream_request(f"r{number}", *[SENTENCE] * 16, **steps) for number in range(40)]
    async with grpc.aio.insecure_channel(bundled_server, options=NARROW) as channel:
        serialize, parse = oip.ModelInferRequest.SerializeToString, oip.ModelStreamInferResponse.FromString
        call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer", serialize, parse)(iter(sent), timeout=120)
        await call.read()
        with inference_stub(bundled_server) as service:  # another client is served meanwhile
            done = await asyncio.to_thread(service.ModelInfer, infer_request("A dog."), timeout=60)
        assert done.model_name == MODEL
        assert num_read < len(sent)
        call.cancel()


async def test_a_stream_without_requests_ends(bundled_server):
    async with grpc.aio.insecure_channel(bundled_server) as channel:
        call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter(()), timeout=60)
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
