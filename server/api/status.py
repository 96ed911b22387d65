"""A RequestError as gRPC tells it: a status code, and google.rpc.Status with details for programs."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from ..errors import RequestError

DOMAIN = "sidelight"


def status_code(error: RequestError) -> grpc.StatusCode:
    """The error's code as gRPC has it."""
    return grpc.StatusCode[error.code.name]


def details(error: RequestError, request_id: str) -> bytes:
    """The error as a serialized google.rpc.Status, for the trailer `grpc-status-details-bin`."""
    parts: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if request_id:
        parts.append(error_details_pb2.RequestInfo(request_id=request_id))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        parts.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.code.value, message=str(error))
    for part in parts:
        packed = AnyMessage()
        packed.Pack(part)
        status.details.append(packed)
    return status.SerializeToString()
