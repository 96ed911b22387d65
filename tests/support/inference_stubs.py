"""Raw calls of the Open Inference Protocol: what any generated client sends, without a client library."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from sidelight.open_inference import grpc_service_pb2 as oip

SERVICE = "/inference.GRPCInferenceService"
MODEL = "tatoeba-en-de"


class InferenceStub:
    """The seven RPCs over a channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        for method in oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            make = channel.stream_stream if method.client_streaming else channel.unary_unary
            request, response = (getattr(oip, each.name) for each in (method.input_type, method.output_type))
            serialize, parse = request.SerializeToString, response.FromString
            setattr(self, method.name, make(f"{SERVICE}/{method.name}", serialize, parse))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@contextmanager
def inference_stub(address: str) -> Iterator[InferenceStub]:
    """A stub with a connection of its own."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield InferenceStub(channel)


def infer_request(
    *texts: str, outputs: Sequence[str] = (), targets: Sequence[str] = (), raw: bool = False, **parameters: Any
) -> oip.ModelInferRequest:
    """A request with texts. Its elements are in `contents`, or raw as bytes."""
    message = oip.ModelInferRequest(model_name=MODEL)
    for name, values in (("text_input", texts), ("target_input", targets)):
        if values:
            tensor = message.inputs.add(name=name, datatype="BYTES", shape=[len(values)])
            encoded = [value.encode() for value in values]
            if raw:
                message.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in encoded))
            else:
                tensor.contents.bytes_contents.extend(encoded)
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        set_parameter(message, name, value)
    return message


def set_parameter(message: oip.ModelInferRequest, name: str, value: Any) -> None:
    """Sets a parameter of the type of a value of Python."""
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(message.parameters[name], kinds[type(value)], value)


def tensors_of(response: oip.ModelInferResponse) -> dict[str, Any]:
    """The outputs of a response: arrays of numbers, and nested lists of texts."""
    tensors = {}
    for index, output in enumerate(response.outputs):
        if response.raw_output_contents:
            values: Any = _split(response.raw_output_contents[index], output.datatype)
        else:
            contents = output.contents
            values = {
                "BYTES": [text.decode() for text in contents.bytes_contents],
                "INT32": np.array(contents.int_contents, np.int32),
                "FP32": np.array(contents.fp32_contents, np.float32),
            }[output.datatype]
        array = np.array(values, object if output.datatype == "BYTES" else None).reshape(tuple(output.shape))
        tensors[output.name] = array.tolist() if output.datatype == "BYTES" else array
    return tensors


def _split(raw: bytes, datatype: str) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(raw, {"INT32": "<i4", "FP32": "<f4"}[datatype])
    texts = []
    while raw:
        (length,) = struct.unpack("<I", raw[:4])
        texts.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return texts
