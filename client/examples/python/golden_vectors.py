"""Decodes the golden vectors, and compares them with their JSON and their arrays."""

# NumPy's stubs leave some members partly unknown, and google.rpc has none.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from attention_arrays import decode
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import status_pb2
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import text_pb2 as text

_METHODS = service.DESCRIPTOR.services_by_name["AttributionService"].methods_by_name
_ENCODINGS: dict[int, tuple[str, int]] = {text.OFFSET_UNIT_UTF16: ("utf-16-le", 2), text.OFFSET_UNIT_UTF8: ("utf-8", 1)}


def check_vectors(folder: Path, describe_status: Callable[[status_pb2.Status], str]) -> None:
    """Checks all vectors of a folder. Raises ValueError, which says where the first difference is."""
    names = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    messages = arrays = texts = 0
    for name in names:
        expected = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        method = _METHODS[expected["method"]]
        requests = [*_read(folder / f"{name}.requests.bin", expected["requests"], method.input_type.name)]
        responses = [*_read(folder / f"{name}.responses.bin", expected["responses"], method.output_type.name)]
        messages += len(requests) + len(responses)
        if expected["status"] is not None:
            status = status_pb2.Status.FromString((folder / f"{name}.status.bin").read_bytes())
            _expect(describe_status(status), _words(expected["status"]), f"{name}: status")
            messages += 1
        parts = [part for response in responses for part in _walk(response)]
        found = [part for part in parts if isinstance(part, attention.Attention)]
        _expect(len(found), len(expected["arrays"]), f"{name}: number of arrays")
        for message, array in zip(found, expected["arrays"], strict=True):
            values = decode(message, array["positionsAxis"], array["shape"][array["positionsAxis"]])
            numbers = np.array(array["values"], np.float32).reshape(array["shape"])
            if values.shape != numbers.shape or not (values == numbers).all():
                raise ValueError(f"{name}: {array['path']} is {values}, not {numbers}")
        arrays += len(found)
        texts += _check_texts(parts, name)
    print(f"{len(names)} vectors, {messages} messages, {arrays} arrays, {texts} texts at their offsets")


def _read(path: Path, expected: list[Any], type_name: str) -> Iterator[Message]:
    """Reads messages as gRPC sends them: a byte 0, four bytes of length, and the message."""
    data, rest = path.read_bytes(), [*expected]
    while data:
        end = 5 + struct.unpack(">xI", data[:5])[0]
        message: Message = getattr(service, type_name).FromString(data[5:end])
        _expect(message.SerializeToString(deterministic=True), data[5:end], f"{path.name}: bytes")
        _expect(json_format.MessageToDict(message), rest.pop(0), f"{path.name}: JSON")
        yield message
        data = data[end:]
    _expect(rest, [], f"{path.name}: further messages")


def _expect(found: object, expected: object, where: str) -> None:
    if found != expected:
        raise ValueError(f"{where}: {found!r}, not {expected!r}")


def _words(status: dict[str, Any]) -> str:
    """What the JSON of a status says, in the words of `describe_status`."""
    words = [next(code.name for code in grpc.StatusCode if code.value[0] == status["code"])]
    for detail in status["details"]:
        words += [detail["reason"]] if "reason" in detail else []
        words += [f"{wrong['field']}: {wrong['description']}" for wrong in detail.get("fieldViolations", ())]
    return " ".join(words)


def _walk(message: Message) -> Iterator[Message]:
    """A message and all messages in it, in the order of the fields."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _walk(item)


def _check_texts(messages: Iterable[Message], name: str) -> int:
    """Compares each text of a token or a span with the characters at its offsets. Returns how many there are."""
    count = unit = 0
    for message in messages:
        spans: list[tuple[str, Any]] = []
        if isinstance(message, service.Started):
            unit = message.offset_unit
            spans = [(message.source_text, item) for item in (*message.source, *message.source_units)]
        elif isinstance(message, service.Finished):
            spans = [(message.text, item) for item in message.alignment.target]
        elif isinstance(message, service.AlignResponse):
            unit = message.offset_unit
            spans = [(message.source_text, item) for item in message.source]
            spans += [(message.target_text, item) for item in message.target]
        for whole, item in spans:
            _expect(_cut(whole, item.begin, item.end, unit), item.text, f"{name}: text")
        count += len(spans)
    return count


def _cut(whole: str, begin: int, end: int, unit: int) -> str:
    """The part of a text between two offsets."""
    if unit not in _ENCODINGS:
        return whole[begin:end]
    encoding, width = _ENCODINGS[unit]
    return whole.encode(encoding)[begin * width : end * width].decode(encoding)
