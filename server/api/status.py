"""A RequestError becomes a gRPC status, or the Error of one text, here and nowhere else.

A status has a code, a message, and a google.rpc.Status with details for programs.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

from ..errors import RequestError

DOMAIN = "sidelight"


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RequestError, request_id: str) -> NoReturn:
    """Ends a call with an error. A client that reads slowly gets the status after the messages sent before.

    Raises CancelledError if the client has gone.
    """
    trailers = (("grpc-status-details-bin", _details(error, request_id)),)
    try:
        await context.abort(grpc.StatusCode[error.code.name], str(error), trailers)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None
    raise AssertionError("abort does not return")


def fill_error(message: service_pb.Error, error: RequestError) -> None:
    """Writes the error of one text into a message: what a status and its details would say."""
    message.code = error.code.value
    message.message = str(error)
    message.reason = error.reason
    message.reference = error.reference
    message.field = error.field
    if error.retry_after is not None:
        message.retry_delay.FromMilliseconds(round(error.retry_after * 1000))


def _details(error: RequestError, request_id: str) -> bytes:
    """Returns the error as a serialized google.rpc.Status, for the trailer `grpc-status-details-bin`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if error.reference:
        info.metadata["reference"] = error.reference
    details: list[Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=error.code.value, message=str(error))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status.SerializeToString()
