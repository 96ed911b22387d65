"""What a request can be told when it fails: a status, a reason for programs, the field that is to blame.

Every error that reaches a client is made here. Texts name fields and limits, never classes, paths or traces; what they
quote of a request is cut here, so that all trailers of a call stay below 4 KiB: clients refuse more than 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "sidelight"

# Bytes of a message and of a field's path. A message is sent three times, in ways that take up to six times its bytes.
_MESSAGE_BYTES, _FIELD_BYTES = 480, 160
# Characters of a value that a message quotes.
_QUOTED = 60


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

    def __post_init__(self) -> None:
        self.message = _cut(self.message, _MESSAGE_BYTES)
        self.field = _cut(self.field, _FIELD_BYTES)

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def quote(value: str) -> str:
    """A value of a request as messages show it: its beginning, without line breaks and the like."""
    shown = value if len(value) <= _QUOTED else f"{value[:_QUOTED]}…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in shown)


def _cut(text: str, most: int) -> str:
    """A text's beginning of at most so many bytes."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= most else f"{encoded[: most - 3].decode('utf-8', 'ignore')}…"


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


def expired() -> RequestError:
    """DEADLINE_EXCEEDED: the request's own time is up."""
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline has passed")


def stopped() -> RequestError:
    """UNAVAILABLE: the server ends; another one may serve the request."""
    message = "the server is shutting down"
    return RequestError(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=1.0)


def broken() -> RequestError:
    """UNAVAILABLE: the server has failed as a whole, and ends."""
    message = "the model's engine has failed; the server's log has the details"
    return RequestError(grpc.StatusCode.UNAVAILABLE, "ENGINE_FAILED", message, retry_after=1.0)


def queue_full(waiting: int) -> RequestError:
    """RESOURCE_EXHAUSTED: no more requests may wait."""
    message = f"{waiting:,} requests are waiting already"
    return RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", message, retry_after=1.0)


def late(seconds: float) -> RequestError:
    """DEADLINE_EXCEEDED: a request that does not arrive, though its call has begun."""
    message = f"the request has not arrived within {seconds:.0f} seconds"
    return RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_LATE", message)


def stalled() -> RequestError:
    """ABORTED: a stream whose reader has taken nothing for too long."""
    message = "the stream's reader has taken nothing for too long"
    return RequestError(grpc.StatusCode.ABORTED, "READER_STALLED", message)


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
