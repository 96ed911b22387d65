"""Bytes that are no request are refused, in little time, and the error names the field."""

from __future__ import annotations

import gzip
import logging
import re

import grpc
import pytest
from hostile_clients import ATTRIBUTE, INVALID
from sidelight.server.api import parsing


def delimited(tag: int, data: bytes) -> bytes:
    length, rest = b"", len(data)
    while rest > 127:
        length += bytes([rest & 127 | 128])
        rest >>= 7
    return bytes([tag]) + length + bytes([rest]) + data


MILLIONS = {
    "empty sources": b"\x1a\x00" * 1_900_000,
    "unknown fields": b"\xf8\x01\x00" * 1_300_000,
    "chat messages": delimited(0x1A, delimited(0x1A, b"\x0a\x00" * 1_900_000)),
    "stop texts": delimited(0x32, b"\x2a\x00" * 1_900_000),
}


@pytest.mark.parametrize("fields", MILLIONS.values(), ids=MILLIONS)
def test_a_bad_last_field_is_named_without_a_walk_over_the_others(bundled_server, fields, monkeypatch):
    """4 KB on the wire, by gzip, in which everybody else would wait for 13 seconds."""
    looked_at = []
    is_utf8 = parsing._is_utf8
    monkeypatch.setattr(parsing, "_is_utf8", lambda data: looked_at.append(1) or is_utf8(data))
    data = fields + delimited(0x12, b"\xff\xfe")
    assert len(gzip.compress(data)) < 8192
    with grpc.insecure_channel(bundled_server) as channel:
        call = channel.unary_stream(ATTRIBUTE)
        with pytest.raises(grpc.RpcError) as raised:
            list(call(data, timeout=60, compression=grpc.Compression.Gzip))
    assert raised.value.code() == INVALID
    assert raised.value.details() == "model: is not valid UTF-8"
    assert len(looked_at) <= parsing._MAX_CHECKED + 1


@pytest.mark.parametrize("depth", ["in a chat", "among many stop texts"])
def test_what_is_not_looked_at_is_refused_all_the_same(bundled_server, depth):
    if depth == "in a chat":
        data = delimited(0x1A, delimited(0x1A, delimited(0x0A, delimited(0x12, b"\xc3\x28"))))
        said = "source.chat.messages[0].content: is not valid UTF-8"
    else:
        data = delimited(0x32, b"\x2a\x00" * 5000 + delimited(0x2A, b"\xff"))
        said = "a text of the request is not valid UTF-8"
    with grpc.insecure_channel(bundled_server) as channel, pytest.raises(grpc.RpcError) as raised:
        list(channel.unary_stream(ATTRIBUTE)(data, timeout=60))
    assert (raised.value.code(), raised.value.details()) == (INVALID, said)


STANDARD = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
STANDARD += ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
OURS = [f"/sidelight.v1.AttributionService/{name}" for name in ("Attribute", "GetModel")]


@pytest.mark.parametrize("method", STANDARD + OURS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x50abc"])
async def test_malformed_bytes_are_refused_alike_everywhere(bundled_server, method, data, caplog):
    with caplog.at_level(logging.INFO):
        async with grpc.aio.insecure_channel(bundled_server) as channel:
            call = channel.stream_stream(method)(iter([data]), timeout=60)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in call:
                    pass
    assert raised.value.code() == INVALID
    assert not re.search("Error|Health|Reflection", raised.value.details() or "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
