"""What the log says of calls and of faults, and that it has no texts of clients."""

from __future__ import annotations

import json
import logging
import re

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from harness import request, serving, stub
from raw_http2 import RawConnection
from sidelight.client import Client, InternalError
from sidelight.server.api.rpcs import answer
from sidelight.server.engine import engine_core
from sidelight.server.operations import LogOptions, configure_log

SECRET = "a text that nobody else may read"
SECRET_TOKEN = "bKx0pT3nYq7vWc2mZr9sLd4h"
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def quote_text(*_: object) -> None:
    """Fails as a library does that quotes its input, while it handles another error."""
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"cannot read {SECRET}", SECRET) from error


@pytest.mark.parametrize("has_texts", [False, True])
@pytest.mark.parametrize("is_json", [False, True])
def test_a_fault_has_one_reference_for_client_and_log(bundled, monkeypatch, capsys, is_json, has_texts):
    monkeypatch.setattr(answer, "validate", quote_text)
    configure_log(LogOptions(is_json=is_json, has_texts=has_texts))
    with serving(bundled) as address:
        metadata = [("traceparent", f"00-{_TRACE}-00f067aa0ba902b7-01")]
        with stub(address) as service, pytest.raises(grpc.RpcError) as raised:
            list(service.Attribute(request(SECRET, request_id="my-id"), metadata=metadata))
        with Client(address) as client:
            with pytest.raises(InternalError) as from_status:
                client.attribute("A dog.").result()
            (many,) = client.attribute_many(["A dog."])
    log = capsys.readouterr().err
    assert isinstance(many.error, InternalError)
    for error in (from_status.value, many.error):
        assert re.fullmatch("[0-9a-f]{16}", error.reference)
        assert error.message.endswith(error.reference)
        assert error.reference in log
    assert raised.value.code() == grpc.StatusCode.INTERNAL
    trailers = {entry.key: entry.value for entry in raised.value.trailing_metadata()}
    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.details[0].Unpack(info)
    reference = info.metadata["reference"]
    assert reference in raised.value.details()
    assert "ValueError" not in raised.value.details()
    assert SECRET not in raised.value.details()
    assert log.count(reference) == (2 if is_json else 1), log
    assert (SECRET in log) is has_texts
    assert "builtins.KeyError" in log or has_texts
    assert "in quote_text" in log
    if is_json:
        lines = [json.loads(line) for line in log.splitlines()]
        (line,) = [line for line in lines if line.get("reference") == reference]
        assert (line["level"], line["request_id"]) == ("error", "my-id")
        assert line["trace_id"] == _TRACE
        assert "ValueError" in line["exception"]
        assert [line["text"] for line in lines if line.get("request_id") == "my-id" and "text" in line] == (
            [SECRET] if has_texts else []
        )


@pytest.mark.parametrize("is_json", [False, True])
def test_a_line_of_another_library_does_not_quote_its_exception(capsys, is_json):
    configure_log(LogOptions(is_json=is_json))
    error = ValueError(SECRET)
    logging.getLogger("asyncio").error("Task failed\nfuture: %r", error, exc_info=error)
    log = capsys.readouterr().err
    assert "Task failed" in log
    assert "builtins.ValueError" in log
    assert SECRET not in log


def test_exceptions_that_name_each_other_have_an_end(capsys):
    configure_log(LogOptions())
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    logging.getLogger("sidelight").error("failed", exc_info=first)
    assert capsys.readouterr().err.count("builtins.") == 2


@pytest.mark.parametrize("is_json", [False, True])
def test_a_value_of_metadata_that_is_not_utf8_is_in_no_line(bundled_server, capsys, is_json):
    """gRPC logs such a value, which may be a token, with a stack."""
    configure_log(LogOptions(is_json=is_json))
    metadata = [("authorization", f"Bearer {SECRET_TOKEN}\xff"), ("x-\xe9", SECRET_TOKEN)]
    message = request("A dog.").SerializeToString()
    for values in (metadata[:1], metadata):
        with RawConnection(bundled_server, window=2**20) as connection:
            stream = connection.begin("/sidelight.v1.AttributionService/Attribute", metadata=values)
            connection.send_message(stream, message, is_last=True)
            connection.frames_until_closed(stream)
    with stub(bundled_server) as service:
        assert list(service.Attribute(request("A dog."), timeout=60))[-1].HasField("finished")
    logging.getLogger("grpc._cython.cygrpc").error("another line")
    log = capsys.readouterr().err
    assert "another line" in log
    assert SECRET_TOKEN not in log
    assert "Invalid encoding" not in log
    assert "Traceback" not in log


def test_a_fault_in_the_engine_has_the_ids_of_its_call(bundled, security, token_metadata, monkeypatch, capsys):
    monkeypatch.setattr(engine_core, "make_output_builder", quote_text)
    configure_log(LogOptions(is_json=True))
    metadata = [("traceparent", f"00-{_TRACE}-00f067aa0ba902b7-00"), *token_metadata["someone"]]
    message = request(SECRET, request_id="my-id")
    with serving(bundled, security=security) as address, stub(address) as service, pytest.raises(grpc.RpcError):
        list(service.Attribute(message, metadata=metadata))
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = [line for line in lines if line["level"] == "error"]
    assert (line["request_id"], line["client"], line["trace_id"]) == ("my-id", "someone", _TRACE)
    assert "reference" in line
