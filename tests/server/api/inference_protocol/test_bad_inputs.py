"""What is wrong with a request is said by the name of the tensor or of the parameter, and nothing runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hostile_clients import SENTENCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inference_stubs import MODEL, SERVICE, infer_request, inference_stub, tensors_of
from sidelight.open_inference import grpc_service_pb2 as oip
from sidelight.server.api.inference_protocol import inference_request
from sidelight.server.api.inference_protocol.parameters import PARAMETERS

METHODS = [method.name for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def error_of(address: str, message: oip.ModelInferRequest) -> tuple[grpc.StatusCode, str, str]:
    """The code, the reason and the field of the error of a request."""
    with inference_stub(address) as service, pytest.raises(grpc.RpcError) as raised:
        service.ModelInfer(message, timeout=60)
    return parts_of(raised.value)


def parts_of(error: Any) -> tuple[grpc.StatusCode, str, str]:
    status = rpc_status.from_call(error)
    assert status is not None, error
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad) or detail.type_url
    return error.code(), info.reason, bad.field_violations[0].field if bad.field_violations else ""


def changed(change: Callable[[oip.ModelInferRequest], object], *texts: str, **fields: Any) -> oip.ModelInferRequest:
    message = infer_request(*(texts or ("A dog.",)), **fields)
    change(message)
    return message


def set_bytes(*values: bytes) -> Callable[[oip.ModelInferRequest], None]:
    def change(message: oip.ModelInferRequest) -> None:
        message.inputs[0].contents.bytes_contents[:] = values

    return change


def rename_input(name: str) -> Callable[[oip.ModelInferRequest], None]:
    return lambda message: setattr(message.inputs[0], "name", name)


def set_shape(*shape: int) -> Callable[[oip.ModelInferRequest], None]:
    def change(message: oip.ModelInferRequest) -> None:
        message.inputs[0].shape[:] = shape

    return change


def set_raw(*values: bytes) -> Callable[[oip.ModelInferRequest], None]:
    def change(message: oip.ModelInferRequest) -> None:
        for tensor in message.inputs:
            tensor.ClearField("contents")
        message.raw_input_contents[:] = values

    return change


def add_input(**fields: Any) -> Callable[[oip.ModelInferRequest], object]:
    return lambda message: message.inputs.add(**fields)


def set_tensor_parameter(message: oip.ModelInferRequest) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"


def set_output_parameter(message: oip.ModelInferRequest) -> None:
    message.outputs.add(name="links").parameters["classification"].int64_param = 1


BAD: dict[str, tuple[oip.ModelInferRequest, tuple[grpc.StatusCode, str, str]]] = {
    "no inputs": (oip.ModelInferRequest(model_name=MODEL), (INVALID, "REQUIRED", "text_input")),
    "unknown model": (oip.ModelInferRequest(model_name="other"), (NOT_FOUND, "UNKNOWN_MODEL", "model_name")),
    "unknown version": (
        changed(lambda message: setattr(message, "model_version", "2")),
        (NOT_FOUND, "UNKNOWN_VERSION", "model_version"),
    ),
    "unknown input": (changed(rename_input("input-0")), (INVALID, "UNKNOWN_INPUT", "inputs[0].name")),
    "the same input twice": (
        changed(add_input(name="text_input", datatype="BYTES", shape=[1])),
        (INVALID, "DUPLICATE", "inputs[1].name"),
    ),
    "many inputs": (
        changed(lambda message: [message.inputs.add(name=str(n)) for n in range(1000)]),
        (INVALID, "TOO_MANY", "inputs"),
    ),
    "wrong datatype": (
        changed(lambda message: setattr(message.inputs[0], "datatype", "FP32")),
        (INVALID, "WRONG_DATATYPE", "text_input.datatype"),
    ),
    **{
        f"shape {shape}": (changed(set_shape(*shape)), (INVALID, "WRONG_SHAPE", "text_input.shape"))
        for shape in ([], [0], [-1], [1, 2], [1, 1, 1], [2**62, 4], [0, 1])
    },
    "more texts than there is room for": (changed(set_shape(65)), (INVALID, "TOO_MANY", "text_input.shape")),
    "a vast number of texts": (changed(set_shape(2**62)), (INVALID, "TOO_MANY", "text_input.shape")),
    "fewer elements": (changed(set_shape(2)), (INVALID, "SHAPE_MISMATCH", "text_input.contents")),
    "more elements": (changed(set_bytes(b"a", b"b")), (INVALID, "SHAPE_MISMATCH", "text_input.contents")),
    "not UTF-8": (changed(set_bytes(b"\xff")), (INVALID, "NOT_UTF8", "text_input[0]")),
    "raw, too short for a length": (changed(set_raw(b"\x01\0")), (INVALID, "MALFORMED", "text_input.contents")),
    "raw, too short for the text": (changed(set_raw(b"\x09\0\0\0a")), (INVALID, "MALFORMED", "text_input.contents")),
    "raw, a vast length": (changed(set_raw(b"\xff\xff\xff\xff")), (INVALID, "MALFORMED", "text_input.contents")),
    "raw, one text more": (
        changed(set_raw(b"\x01\0\0\0a\x01\0\0\0b")),
        (INVALID, "SHAPE_MISMATCH", "text_input.contents"),
    ),
    "raw, nothing": (changed(set_raw(b"")), (INVALID, "SHAPE_MISMATCH", "text_input.contents")),
    "raw for another input": (changed(set_raw(b"", b"")), (INVALID, "SHAPE_MISMATCH", "raw_input_contents")),
    "raw and contents": (
        changed(lambda message: message.raw_input_contents.append(b"")),
        (INVALID, "CONTRADICTION", "text_input.contents"),
    ),
    "targets of other texts": (
        infer_request("A dog.", "A cat.", targets=["Ein Hund."]),
        (INVALID, "SHAPE_MISMATCH", "target_input.shape"),
    ),
    "a stream in one response": (
        changed(
            lambda message: message.inputs.add(name="stream", datatype="BOOL", shape=[1]).contents.bool_contents.append(
                True
            )
        ),
        (INVALID, "CONTRADICTION", "stream"),
    ),
    "two values of stream": (
        changed(add_input(name="stream", datatype="BOOL", shape=[2])),
        (INVALID, "WRONG_SHAPE", "stream.shape"),
    ),
    "shared memory": (changed(set_tensor_parameter), (INVALID, "UNKNOWN_PARAMETER", "text_input.parameters")),
    "classification": (changed(set_output_parameter), (INVALID, "UNKNOWN_PARAMETER", "outputs[0].parameters")),
    "unknown output": (
        infer_request("A dog.", outputs=["links", "output-0"]),
        (INVALID, "UNKNOWN_OUTPUT", "outputs[1].name"),
    ),
    "the same output twice": (
        infer_request("A dog.", outputs=["links", "links"]),
        (INVALID, "DUPLICATE", "outputs[1].name"),
    ),
    "many outputs": (infer_request("A dog.", outputs=["links"] * 5000), (INVALID, "TOO_MANY", "outputs")),
    "an id with a line feed": (
        changed(lambda message: setattr(message, "id", "a\nb")),
        (INVALID, "MALFORMED", "id"),
    ),
    "a long id": (changed(lambda message: setattr(message, "id", "a" * 129)), (INVALID, "MALFORMED", "id")),
    "unknown parameter": (infer_request("A dog.", max_tokens=3), (INVALID, "UNKNOWN_PARAMETER", "parameters")),
    "Triton's sequences": (infer_request("A dog.", sequence_id=3), (INVALID, "UNKNOWN_PARAMETER", "parameters")),
    "many parameters": (
        infer_request("A dog.", **{f"p{number}": 1 for number in range(1000)}),
        (INVALID, "TOO_MANY", "parameters"),
    ),
    "decoding of a given target": (
        infer_request("A dog.", targets=["Ein Hund."], max_new_tokens=3),
        (INVALID, "CONTRADICTION", "parameters[max_new_tokens]"),
    ),
    "beams and sampling": (
        infer_request("A dog.", beam_width=2, top_k=3),
        (INVALID, "CONTRADICTION", "parameters[beam_width]"),
    ),
    "links of a beam search": (
        infer_request("A dog.", beam_width=2, outputs=["links"]),
        (INVALID, "CONTRADICTION", "outputs"),
    ),
    "heads without attention": (
        infer_request("A dog.", outputs=["links"], over_heads="max"),
        (INVALID, "CONTRADICTION", "parameters[over_heads]"),
    ),
    "a link method without links": (
        infer_request("A dog.", outputs=["text_output"], link_method="argmax"),
        (INVALID, "CONTRADICTION", "parameters[link_method]"),
    ),
    "no positive timeout": (infer_request("A dog.", timeout=0), (INVALID, "OUT_OF_RANGE", "parameters[timeout]")),
    "a final response that is no truth": (
        infer_request("A dog.", triton_enable_empty_final_response=1),
        (INVALID, "WRONG_TYPE", "parameters[triton_enable_empty_final_response]"),
    ),
    "unknown preset": (
        infer_request("A dog.", outputs=["cross_attention"], heads_preset="other"),
        (INVALID, "UNKNOWN_PRESET", "parameters[heads_preset]"),
    ),
    "a preset of heads and layers": (
        infer_request("A dog.", outputs=["cross_attention"], heads_preset="alignment", over_layers="max"),
        (INVALID, "CONTRADICTION", "parameters[over_layers]"),
    ),
    "the greatest integer": (
        infer_request("A dog.", max_new_tokens=2**62),
        (INVALID, "OUT_OF_RANGE", "parameters[max_new_tokens]"),
    ),
    "a negative integer": (infer_request("A dog.", top_k=-1), (INVALID, "OUT_OF_RANGE", "parameters[top_k]")),
    "no number": (infer_request("A dog.", top_p="much"), (INVALID, "WRONG_TYPE", "parameters[top_p]")),
    "not a number": (infer_request("A dog.", top_p="nan"), (INVALID, "OUT_OF_RANGE", "parameters[top_p]")),
    "a language that the model does not know": (
        infer_request("A dog.", target_language="xx"),
        (INVALID, "UNKNOWN_LANGUAGE", "parameters[target_language]"),
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_the_tensor_or_the_parameter(bundled_server, name):
    message, expected = BAD[name]
    assert error_of(bundled_server, message) == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_parameter_has_a_type(bundled_server, name):
    wanted = {"outputs": ["cross_attention", "links"]}
    code, reason, field = error_of(bundled_server, infer_request("A dog.", **wanted, **{name: True}))
    assert (code, reason, field) == (INVALID, "WRONG_TYPE", f"parameters[{name}]")
    if PARAMETERS[name].enum is not None:
        code, reason, field = error_of(bundled_server, infer_request("A dog.", **wanted, **{name: "UNSPECIFIED"}))
        assert (code, reason, field) == (INVALID, "UNKNOWN_VALUE", f"parameters[{name}]")


@pytest.mark.parametrize("bad", ["", "word " * 5000])
def test_one_bad_text_of_many_is_named(bundled_server, bad):
    texts = ["A dog.", SENTENCE, bad, "A cat."]
    code, _, field = error_of(bundled_server, infer_request(*texts))
    assert (code, field) == (INVALID, "text_input[2]")
    targets = ["Ein Hund.", "Ja.", bad, "Eine Katze."]
    code, _, field = error_of(bundled_server, infer_request(*["A dog."] * 4, targets=targets))
    assert (code, field) == (INVALID, "target_input[2]")


def test_attention_that_no_response_holds_is_refused_before_it_is_computed(bundled_server, monkeypatch):
    wanted = {"outputs": ["cross_attention"], "max_new_tokens": 8}
    bytes_of_a_text = 4 * 8 * 15  # of 15 source tokens
    monkeypatch.setattr(inference_request, "MAX_ATTENTION_BYTES", 4 * bytes_of_a_text)
    with inference_stub(bundled_server) as service:
        found = tensors_of(service.ModelInfer(infer_request(*[SENTENCE] * 4, **wanted), timeout=60))
    assert found["cross_attention"].shape[::2] == (4, 15)
    assert error_of(bundled_server, infer_request(*[SENTENCE] * 5, **wanted)) == (INVALID, "TOO_LARGE", "outputs")


@pytest.mark.parametrize(
    "method", [method.name for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x50abc"])
async def test_malformed_bytes_are_refused(bundled_server, method, data, caplog):
    with caplog.at_level(logging.INFO):
        async with grpc.aio.insecure_channel(bundled_server) as channel:
            call = channel.stream_stream(f"{SERVICE}/{method}")(iter([data]), timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in call:
                    pass
    assert raised.value.code() is INVALID
    assert not re.search("Error|Message|Traceback", raised.value.details() or "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_text_of_a_map_that_is_not_utf8_is_named(bundled_server):
    message = infer_request("A dog.", source_language="en")
    data = message.SerializeToString().replace(b"\x1a\x02en", b"\x1a\x02\xff\xfe")
    with grpc.insecure_channel(bundled_server) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"{SERVICE}/ModelInfer")(data, timeout=60)
    assert parts_of(raised.value) == (INVALID, "NOT_UTF8", "parameters[source_language].string_param")


def values() -> st.SearchStrategy[oip.InferParameter]:
    return st.one_of(
        st.builds(oip.InferParameter, bool_param=st.booleans()),
        st.builds(oip.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(oip.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
        st.builds(oip.InferParameter, double_param=st.floats()),
        st.builds(oip.InferParameter, string_param=st.sampled_from(["", "max", "1e400", "argmax", "\0", "en"])),
        st.just(oip.InferParameter()),
    )


def tensors() -> st.SearchStrategy[oip.ModelInferRequest.InferInputTensor]:
    contents = st.builds(
        oip.InferTensorContents,
        bytes_contents=st.lists(st.sampled_from([b"A dog.", b"", b"\xff", b"x" * 2000]), max_size=3),
        bool_contents=st.lists(st.booleans(), max_size=2),
    )
    return st.builds(
        oip.ModelInferRequest.InferInputTensor,
        name=st.sampled_from(["text_input", "target_input", "stream", "", "other"]),
        datatype=st.sampled_from(["BYTES", "BOOL", "INT32", ""]),
        shape=st.lists(st.sampled_from([1, 2, 0, -1, 2**63 - 1]), max_size=3),
        contents=contents,
    )


requests = st.builds(
    oip.ModelInferRequest,
    model_name=st.sampled_from([MODEL, "", "other"]),
    model_version=st.sampled_from(["", "1", "0"]),
    id=st.text(max_size=5),
    inputs=st.lists(tensors(), max_size=4),
    outputs=st.lists(
        st.builds(
            oip.ModelInferRequest.InferRequestedOutputTensor,
            name=st.sampled_from(["links", "text_output", "cross_attention", "entropy", "other"]),
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(st.binary(max_size=12), max_size=3),
    parameters=st.dictionaries(st.sampled_from([*PARAMETERS, "timeout", "other"]), values(), max_size=3),
)


@given(message=requests)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_an_answer_or_a_status_that_says_why(bundled_server, message):
    allowed = {INVALID, NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
    with inference_stub(bundled_server) as service:
        call = service.ModelInfer.future(message, timeout=60)
        if call.code() is grpc.StatusCode.OK:
            assert call.result().model_name == MODEL
        else:
            assert call.code() in allowed
            assert not re.search(r"Error\b|Traceback|/|object at", call.details() or "")
