"""What a request can be told when it fails: a status, a reason for programs, the field that is to blame.

Every error that reaches a client is made here. Texts name fields and limits, never classes, paths or traces.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "sidelight"


@dataclass
class RequestError(Exception):
    """A request that cannot be done.

    `field` is a path in the request, such as "capture.heads.list.heads[2].layer"; empty when no field is to blame.
    `reason` is stable and for programs. `retry_after` is in seconds.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    field: str = ""
    retry_after: float | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def invalid(field: str, reason: str, message: str) -> RequestError:
    """INVALID_ARGUMENT: wrong whatever the state of the server."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, reason, message, field)


def unimplemented(field: str, message: str = "this server does not do that yet") -> RequestError:
    """UNIMPLEMENTED: in the contract, not in this server."""
    return RequestError(grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message, field)


def not_found(field: str, reason: str, message: str) -> RequestError:
    """NOT_FOUND: a name that stands for nothing here."""
    return RequestError(grpc.StatusCode.NOT_FOUND, reason, message, field)


def internal(
    reason: str = "INTERNAL", message: str = "internal error; the server's log has the details"
) -> RequestError:
    """INTERNAL: the server's own fault."""
    return RequestError(grpc.StatusCode.INTERNAL, reason, message)


def not_a_number() -> RequestError:
    """INTERNAL: the model has computed NaN or infinity."""
    return internal("NOT_A_NUMBER", "the model computed numbers that are not finite; a wider dtype may help")


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
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    for part in parts:
        packed = AnyMessage()
        packed.Pack(part)
        status.details.append(packed)
    return status.SerializeToString()
