"""Requests and the responses that a server gave to them, in a file.

`record.py` writes the file `exchanges.json.gz`. `test_wire.py` sends each recorded request again and compares the
responses. Whatever depends on time is left out: the grouping of steps into messages, and durations.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from harness import serving
from model_zoo import build_model
from recorded_answers import normal
from sidelight.server.models.loader import bundled_model, load
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import attribution_service_pb2_grpc as service_grpc

FILE = Path(__file__).with_name("exchanges.json.gz")

# With the bundled model, a model for each way in which a model runs: a CPU program, modules in slots, whole matrices,
# decoder-only, languages.
ZOO = ("t5", "fsmt", "llama", "m2m100")


class Exchange(NamedTuple):
    """A request and its answer: the responses in a normal form, or an error as code, reason and fields."""

    method: str
    request: bytes
    responses: list[bytes]
    error: list[str]


class Recorded(NamedTuple):
    """The exchanges by name, and the machine that recorded them."""

    machine: dict[str, str]
    exchanges: dict[str, Exchange]


@contextmanager
def served(folder: Path) -> Iterator[grpc.Channel]:
    """A channel to a server with the bundled model and the models of `ZOO`."""
    models = [load(bundled_model())] + [load(build_model(name, folder)) for name in ZOO]
    options = [("grpc.max_receive_message_length", -1)]
    with serving(*models) as address, grpc.insecure_channel(address, options=options) as channel:
        yield channel


def exchange(channel: grpc.Channel, method: str, request: bytes) -> Exchange:
    """Sends a request, whose bytes are given, and waits for the end of the answer."""
    stub = service_grpc.AttributionServiceStub(channel)
    types = {"Attribute": service.AttributeRequest, "GetModel": service.GetModelRequest}
    message = types[method].FromString(request)
    try:
        if method == "Attribute":
            answers: list[Any] = normal(list(stub.Attribute(message, timeout=60)))
        else:
            answers = [getattr(stub, method)(message, timeout=60)]
    except grpc.RpcError as error:
        return Exchange(method, request, [], _error_words(error))
    return Exchange(method, request, [answer.SerializeToString(deterministic=True) for answer in answers], [])


def _error_words(error: grpc.RpcError) -> list[str]:
    """The code of an error, its reason and its fields. The sentence of the error is left out: it may be improved."""
    words = [error.code().name]
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else []:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            words.append(f"reason {info.reason}")
        elif detail.Unpack(bad):
            words.extend(f"field {violation.field}" for violation in bad.field_violations)
    return words


def write(recorded: Recorded) -> None:
    """Writes the file."""
    exchanges = {
        name: {
            "method": entry.method,
            "request": base64.b64encode(entry.request).decode(),
            "responses": [base64.b64encode(response).decode() for response in entry.responses],
            "error": entry.error,
        }
        for name, entry in recorded.exchanges.items()
    }
    text = json.dumps({"machine": recorded.machine, "exchanges": exchanges}, indent=0, sort_keys=True)
    FILE.write_bytes(gzip.compress(text.encode(), mtime=0))


def read() -> Recorded:
    """Reads the file."""
    content = json.loads(gzip.decompress(FILE.read_bytes()))
    exchanges = {
        name: Exchange(
            fields["method"],
            base64.b64decode(fields["request"]),
            [base64.b64decode(response) for response in fields["responses"]],
            fields["error"],
        )
        for name, fields in content["exchanges"].items()
    }
    return Recorded(content["machine"], exchanges)
