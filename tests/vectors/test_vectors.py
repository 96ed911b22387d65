"""Golden vectors: the bytes are the JSON, Python's client decodes them to the arrays, and a server still answers so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import vectors
from google.protobuf import json_format
from google.rpc import status_pb2
from harness import stub
from record_vectors import exchange
from recorded_answers import assert_all_alike
from sidelight.client.converters import parse_encoder_self, parse_started, parse_step, parse_unit
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as service
from sidelight.v1 import text_pb2 as text
from vector_requests import plans
from vectors import FOLDER, Vector

NAMES = vectors.names()
PLANS = {plan.name: plan for plan in plans()}


def test_the_index_has_all_files():
    files = {path.name for path in FOLDER.iterdir()} - {"index.json"}
    assert [*PLANS] == NAMES
    expected = {f"{name}.{ending}" for name in NAMES for ending in ("json", "requests.bin", "responses.bin")}
    errors = {f"{name}.status.bin" for name in NAMES if vectors.read(name).status is not None}
    assert files == expected | errors
    assert {name.removesuffix(".status.bin") for name in errors} == {
        name for name in NAMES if name.startswith("error_")
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_json_and_the_bytes_are_the_same(name):
    content = vectors.read_json(name)
    vector = vectors.read(name)
    for messages, ending, make in (
        (vector.requests, "requests", vectors.request_type(vector.method)),
        (vector.responses, "responses", vectors.response_type(vector.method)),
    ):
        assert [json_format.ParseDict(item, make()) for item in content[ending]] == messages
        assert [vectors.as_json(message) for message in messages] == content[ending]
        assert vectors.framed(messages) == (FOLDER / f"{name}.{ending}.bin").read_bytes()
    assert (content["status"] is None) == (vector.status is None)
    if vector.status is not None:
        assert json_format.ParseDict(content["status"], status_pb2.Status()) == vector.status
        assert vectors.serialized(vector.status) == (FOLDER / f"{name}.status.bin").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_pythons_client_decodes_the_arrays(name):
    vector = vectors.read(name)
    found = [*arrays_of_client(vector)]
    assert len(found) == len(vector.arrays)
    for array, expected in zip(found, vector.arrays, strict=True):
        assert list(array.shape) == expected["shape"]
        np.testing.assert_array_equal(array.ravel().astype(np.float32), np.array(expected["values"], np.float32))


def test_the_vectors_have_every_form_of_attention():
    found = [(item, vector) for vector in map(vectors.read, NAMES) for item in vectors.arrays_of(vector.responses)]
    encodings = {(item.message.encoding, bool(item.message.positions)) for item, _ in found}
    assert encodings == {(number, sparse) for number in attention.Encoding.values()[1:] for sparse in (False, True)}
    assert {len(item.message.shape) for item, _ in found} == {1, 2, 3, 4}
    assert any(item.message.special_shares for item, _ in found)
    assert any(min(expected["values"]) < 0 for _, vector in found for expected in vector.arrays)


@pytest.mark.parametrize("name", NAMES)
def test_offsets_lead_to_the_texts(name):
    """In code points, UTF-16 and UTF-8, by what Python's client cuts out of a text."""
    for unit, whole, begin, end, part in spans_of(vectors.read(name)):
        encoding = {text.OFFSET_UNIT_UTF8: "utf-8", text.OFFSET_UNIT_UTF16: "utf-16-le"}.get(unit)
        if encoding is None:
            assert whole[begin:end] == part
            continue
        width = 2 if encoding == "utf-16-le" else 1
        assert whole.encode(encoding)[begin * width : end * width].decode(encoding) == part


def test_the_offsets_of_the_units_differ():
    begins = {}
    for unit in ("code_point", "utf16", "utf8"):
        started = vectors.read(f"words_{unit}").responses[0].started  # pyright: ignore[reportAttributeAccessIssue]
        begins[unit] = tuple(span.begin for span in started.source_units)
    assert len({*begins.values()}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_a_server_answers_as_recorded(bundled_server, name):
    """Floating-point numbers may differ in the fifth digit. `record_vectors.py` says what to do if an answer is to."""
    plan, recorded = PLANS[name], vectors.read(name)
    assert plan.requests == recorded.requests
    with stub(bundled_server) as service_stub:
        answer = exchange(service_stub, plan)
    assert answer.status == recorded.status
    assert_all_alike(answer.responses, recorded.responses)


def arrays_of_client(vector: Vector) -> Iterator[np.ndarray]:
    """All attention of a vector as the client gives it to a program."""
    headers: dict[str, Any] = {}
    for key, event in events_of(vector):
        name = event.WhichOneof("event")
        if name == "started":
            headers[key] = parse_started(event.started)
        elif name == "encoder_self":
            yield parse_encoder_self(event.encoder_self, headers[key]).attention
        elif name in ("steps", "units"):
            parse: Any = parse_step if name == "steps" else parse_unit
            for message in getattr(getattr(event, name), name):
                item = parse(message, headers[key])
                yield from (array for array in (item.cross, item.decoder_self) if array is not None)


def events_of(vector: Vector) -> Iterator[tuple[str, Any]]:
    """The events of each text, with the key of the text."""
    for response in vector.responses:
        if isinstance(response, service.AttributeManyResponse):
            for item in response.batch.responses or [response]:
                if item.HasField("response"):
                    yield item.request_id, item.response
        elif isinstance(response, (service.AttributeResponse, service.FollowResponse)):
            yield "", response


def spans_of(vector: Vector) -> Iterator[tuple[int, str, int, int, str]]:
    """The unit, the text, and the place and the characters of each token and span of a whole text."""
    unit = 0
    for _, event in events_of(vector):
        if event.HasField("started"):
            unit = event.started.offset_unit
            for item in (*event.started.source, *event.started.source_units):
                yield unit, event.started.source_text, item.begin, item.end, item.text
        elif event.HasField("finished"):
            for item in event.finished.alignment.target:
                yield unit, event.finished.text, item.begin, item.end, item.text
    for message in vector.responses:
        if isinstance(message, service.AlignResponse):
            for whole, spans in ((message.source_text, message.source), (message.target_text, message.target)):
                for item in spans:
                    yield message.offset_unit, whole, item.begin, item.end, item.text


def test_a_planted_fault_is_found():
    """A byte of the values, and a position, change what the client decodes."""
    vector = vectors.read("uint8_top_3")
    step: Any = vector.responses[2]
    before = [*arrays_of_client(vector)]
    cross = step.steps.steps[0].cross
    cross.values = bytes([cross.values[0] ^ 1]) + cross.values[1:]
    after = [*arrays_of_client(vector)]
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)].count(False) == 1
