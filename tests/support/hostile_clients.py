"""Requests of clients that take their answers slowly or not at all."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from harness import request
from sidelight.v1 import text_pb2 as text

SENTENCE = "My grandmother is still vigorous at 82 years old."
ATTRIBUTE = "/sidelight.v1.AttributionService/Attribute"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# Options of a channel whose client receives little more than it reads, over a connection of its own.
NARROW = [("grpc.http2.lookahead_bytes", 16384), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1)]
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


def long_request(**fields):
    """A request for 250 tokens."""
    return request(SENTENCE, decoding=text.Decoding(ignore_eos=True, max_new_tokens=250), **fields)


def reason_of_aio(error: grpc.aio.AioRpcError) -> str:
    """The reason in the details of an error, which programs read."""
    info, status = error_details_pb2.ErrorInfo(), status_pb2.Status()
    status.ParseFromString(dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b""))
    return info.reason if any(detail.Unpack(info) for detail in status.details) else "without a reason"


def retry_delay_of(error: Any) -> float:
    """The seconds after which an error says to try again. Fails where the error has none."""
    status, retry = status_pb2.Status(), error_details_pb2.RetryInfo()
    status.ParseFromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    assert any(detail.Unpack(retry) for detail in status.details)
    return retry.retry_delay.ToTimedelta().total_seconds()
