"""Golden vectors: the files of one exchange, written and read. README.md describes the files.

`record_vectors.py` writes them. Programs in every language read them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message

# The types of the details of an error, which JSON names.
from google.rpc import error_details_pb2, status_pb2  # noqa: F401
from recorded_answers import NUMBERS
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service

FOLDER = Path(__file__).parent / "data"
INDEX = FOLDER / "index.json"

METHODS = service.DESCRIPTOR.services_by_name["AttributionService"].methods_by_name


def request_type(method: str) -> type[Message]:
    """The type of a method's requests."""
    return getattr(service, METHODS[method].input_type.name)


def response_type(method: str) -> type[Message]:
    """The type of a method's responses."""
    return getattr(service, METHODS[method].output_type.name)


@dataclass
class Vector:
    """One exchange: what was sent, and what came. An error has a status."""

    name: str
    method: str
    description: str
    requests: Sequence[Message]
    responses: Sequence[Message] = ()
    status: status_pb2.Status | None = None
    arrays: list[dict[str, Any]] = field(default_factory=list)  # read from a file

    def write(self) -> None:
        """Writes the files of this vector."""
        _path(self.name, "requests.bin").write_bytes(framed(self.requests))
        _path(self.name, "responses.bin").write_bytes(framed(self.responses))
        if self.status is not None:
            _path(self.name, "status.bin").write_bytes(serialized(self.status))
        _path(self.name, "json").write_text(self._json(), encoding="utf-8")

    def _json(self) -> str:
        """The JSON of this vector: a message or an array in each line, so that a change shows which one changes."""
        lists = {
            "requests": [*map(as_json, self.requests)],
            "responses": [*map(as_json, self.responses)],
            "arrays": [found.as_json() for found in arrays_of(self.responses)],
        }
        status = None if self.status is None else as_json(self.status)
        entries = {"method": self.method, "description": self.description, "status": status}
        lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in entries.items()]
        for key, items in lists.items():
            rows = ",\n".join(f"  {_compact(item)}" for item in items)
            lines.append(f'"{key}": [\n{rows}\n]' if rows else f'"{key}": []')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def read(name: str) -> Vector:
    """Reads the messages of a vector from their bytes, and the rest from its JSON."""
    content = read_json(name)
    method, status = content["method"], None
    if content["status"] is not None:
        status = status_pb2.Status.FromString(_path(name, "status.bin").read_bytes())
    requests = [request_type(method).FromString(data) for data in frames(_path(name, "requests.bin").read_bytes())]
    responses = [response_type(method).FromString(data) for data in frames(_path(name, "responses.bin").read_bytes())]
    return Vector(name, method, content["description"], requests, responses, status, content["arrays"])


def read_json(name: str) -> dict[str, Any]:
    """Reads the JSON of a vector."""
    return json.loads(_path(name, "json").read_text(encoding="utf-8"))


def names() -> list[str]:
    """The names of all vectors, in order."""
    return json.loads(INDEX.read_text(encoding="utf-8"))


def _path(name: str, ending: str) -> Path:
    return FOLDER / f"{name}.{ending}"


# ---- bytes and JSON -------------------------------------------------------------------------------------------------


def serialized(message: Message) -> bytes:
    """The bytes of a message, with its fields in the order of their numbers."""
    return message.SerializeToString(deterministic=True)


def framed(messages: Iterable[Message]) -> bytes:
    """Messages as gRPC sends them: a byte 0, the length in 4 bytes with the greatest first, and the message."""
    return b"".join(struct.pack(">BI", 0, message.ByteSize()) + serialized(message) for message in messages)


def frames(data: bytes) -> Iterator[bytes]:
    """The messages in bytes that `framed` has made."""
    while data:
        compressed, length = struct.unpack(">BI", data[:5])
        assert not compressed
        yield data[5 : 5 + length]
        data = data[5 + length :]


def as_json(message: Message) -> dict[str, Any]:
    """A message in the JSON of protobuf, with the names of fields in lower camel case."""
    return json_format.MessageToDict(message)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# ---- arrays ---------------------------------------------------------------------------------------------------------


class FoundArray(NamedTuple):
    """An Attention message of a vector, and how many positions there are, of which it may hold only the greatest."""

    path: str
    axis: int
    positions: int
    message: attention.Attention

    def as_json(self) -> dict[str, Any]:
        """The array as numbers: of every position, in C order. A position that was not sent is 0."""
        values = dense(self.message, self.axis, self.positions)
        return {
            "path": self.path,
            "positionsAxis": self.axis,
            "shape": list(values.shape),
            "values": [_shortest(value) for value in values.ravel()],
        }


def _shortest(value: np.float32) -> float | int:
    """The number with the fewest digits that is this number of 4 bytes."""
    number = float(str(value))
    return int(number) if number.is_integer() else number


def dense(message: attention.Attention, axis: int, positions: int) -> np.ndarray:
    """The numbers of an Attention message in float32, read as the comments in attention.proto say."""
    shape = tuple(message.shape)
    values = np.frombuffer(message.values, NUMBERS[message.encoding]).reshape(shape).astype(np.float32)
    if message.encoding == attention.ENCODING_UINT8:
        rows = (*shape[:axis], 1, *shape[axis + 1 :])
        values = values * np.frombuffer(message.scales, "<f4").reshape(rows)
    if not message.positions:
        assert shape[axis] == positions
        return values
    indices = np.frombuffer(message.positions, "<u4").reshape(shape)
    result = np.zeros((*shape[:axis], positions, *shape[axis + 1 :]), np.float32)
    for place in np.ndindex(shape):
        result[(*place[:axis], indices[place], *place[axis + 1 :])] = values[place]
    return result


def arrays_of(responses: Iterable[Message]) -> Iterator[FoundArray]:
    """All Attention messages: in the order of the messages, and in a message in the order of its fields."""
    started: dict[str, service.Started] = {}
    for index, response in enumerate(responses):
        if isinstance(response, service.AttributeManyResponse):
            batch = [("", response)] if response.WhichOneof("event") != "batch" else []
            batch += [(f".batch.responses[{at}]", item) for at, item in enumerate(response.batch.responses)]
            for place, item in batch:
                path = f"responses[{index}]{place}.response"
                yield from _arrays_of_event(item.response, path, started, item.request_id)
        elif isinstance(response, (service.AttributeResponse, service.FollowResponse)):
            yield from _arrays_of_event(response, f"responses[{index}]", started, "")


def _arrays_of_event(event: Any, path: str, started: dict[str, service.Started], key: str) -> Iterator[FoundArray]:
    name = event.WhichOneof("event")
    if name == "started":
        started[key] = event.started
    elif name == "encoder_self":
        path = f"{path}.encoderSelf.attention"
        yield FoundArray(path, 1, _num_source(started[key]), event.encoder_self.attention)
    elif name in ("steps", "units"):
        for at, item in enumerate(getattr(getattr(event, name), name)):
            for kind, word, count in (
                ("cross", "cross", _num_source(started[key])),
                ("decoder_self", "decoderSelf", _num_seen(started[key], item)),
            ):
                if item.HasField(kind):
                    yield FoundArray(f"{path}.{name}.{name}[{at}].{word}", 0, count, getattr(item, kind))


def _num_source(started: service.Started) -> int:
    """The number of source positions that are sent."""
    return len(started.source_positions) or len(started.source_units) or len(started.source)


def _num_seen(started: service.Started, item: service.Step | service.Unit) -> int:
    """The number of positions of decoder self-attention, for an encoder-decoder."""
    if isinstance(item, service.Unit):
        return len(started.prefix_units) + item.index + 1
    return len(started.prefix) + item.index + (started.capture.row == attention.ROW_READING)
