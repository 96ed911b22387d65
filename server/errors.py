"""The errors that a request can end with: a code, a reason for programs, a message, and the field that is to blame.

Every error that reaches a client is made here. A message names fields and limits, never classes, paths or traces. A
long message is cut here, so that all trailers of a call stay below 4 KiB: clients refuse more than 8 KiB.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from enum import IntEnum

# The most bytes of a message and of a field's path. A message is sent three times, and encoded it takes up to six times
# its bytes.
_MAX_MESSAGE_BYTES, _MAX_FIELD_BYTES = 480, 160
# How many characters of a value a message quotes.
_MAX_QUOTED = 60


class ErrorCode(IntEnum):
    """The codes of google.rpc.Code that requests end with. gRPC's status codes have the same names and numbers."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


# The reasons of errors where no more requests may wait, and where memory lacks.
QUEUE_FULL, OUT_OF_MEMORY = "QUEUE_FULL", "OUT_OF_MEMORY"


@dataclass
class RequestError(Exception):
    """A request cannot be served.

    Attributes:
        code: The status code.
        reason: A stable word for programs, such as "TEXT_TOO_LONG".
        message: What is wrong, for people.
        field: A path in the request, such as "capture.heads.list.heads[2].layer"; empty if no field is to blame.
        retry_after: Seconds after which another try may succeed.
        reference: What the log has this error under; empty for an error that is foreseen.
    """

    code: ErrorCode
    reason: str
    message: str
    field: str = ""
    retry_after: float | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        self.message = _cut(self.message, _MAX_MESSAGE_BYTES)
        self.field = _cut(self.field, _MAX_FIELD_BYTES)

    def __reduce__(self) -> tuple[type[RequestError], tuple[object, ...]]:
        fields = (self.code, self.reason, self.message, self.field, self.retry_after, self.reference)
        return RequestError, fields

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def quote(value: str) -> str:
    """Returns the beginning of a request's value for a message, without line breaks and other control characters."""
    quoted = value if len(value) <= _MAX_QUOTED else f"{value[:_MAX_QUOTED]}…"
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in quoted)


def _cut(text: str, max_bytes: int) -> str:
    """Returns the beginning of a text, of at most `max_bytes` bytes of UTF-8."""
    encoded = text.encode("utf-8", "replace")
    return text if len(encoded) <= max_bytes else f"{encoded[: max_bytes - 3].decode('utf-8', 'ignore')}…"


def invalid(field: str, reason: str, message: str) -> RequestError:
    """Returns INVALID_ARGUMENT: the request is wrong in every state of the server."""
    return RequestError(ErrorCode.INVALID_ARGUMENT, reason, message, field)


def unimplemented(field: str, message: str = "this server does not do that yet") -> RequestError:
    """Returns UNIMPLEMENTED: the contract has it, and this server does not."""
    return RequestError(ErrorCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message, field)


def not_found(field: str, reason: str, message: str) -> RequestError:
    """Returns NOT_FOUND: the server has nothing of that name."""
    return RequestError(ErrorCode.NOT_FOUND, reason, message, field)


def internal(
    reason: str = "INTERNAL", message: str = "internal error; the server's log has the details"
) -> RequestError:
    """Returns INTERNAL: the server has an error of its own."""
    return RequestError(ErrorCode.INTERNAL, reason, message)


def unauthenticated(*, has_token: bool) -> RequestError:
    """Returns UNAUTHENTICATED: the server does not know who calls."""
    if has_token:
        return RequestError(ErrorCode.UNAUTHENTICATED, "TOKEN_INVALID", "the token is unknown or has expired")
    message = "this server needs a token: metadata 'authorization: Bearer TOKEN'"
    return RequestError(ErrorCode.UNAUTHENTICATED, "TOKEN_REQUIRED", message)


def report_fault(log: logging.Logger, request_id: str, fault: BaseException, subject: str = "") -> RequestError:
    """Writes an unforeseen error into the log. Returns INTERNAL with a reference id, which the line of the log has too.

    `subject` is what has failed, where that is not the request.
    """
    reference = secrets.token_hex(8)
    ids = {"reference": reference} | ({"request_id": request_id} if request_id else {})
    subject = subject or f"request {request_id or '-'}"
    log.error("%s failed, reference %s", subject, reference, exc_info=fault, extra=ids)
    error = internal(message=f"internal error; the server's log has the details under reference {reference}")
    error.reference = reference
    return error


def expired() -> RequestError:
    """Returns DEADLINE_EXCEEDED: the request's own deadline has passed."""
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline has passed")


def cancelled() -> RequestError:
    """Returns CANCELLED: the client has cancelled the request, on this connection or on another one."""
    return RequestError(ErrorCode.CANCELLED, "CANCELLED", "the request was cancelled")


def stopped() -> RequestError:
    """Returns UNAVAILABLE: the server ends, and another server may serve the request."""
    message = "the server is shutting down"
    return RequestError(ErrorCode.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=1.0)


def broken() -> RequestError:
    """Returns UNAVAILABLE: the engine of the model has failed, and the server ends."""
    message = "the model's engine has failed; the server's log has the details"
    return RequestError(ErrorCode.UNAVAILABLE, "ENGINE_FAILED", message, retry_after=1.0)


def queue_full(num_waiting: int) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: no more requests may wait."""
    message = f"{num_waiting:,} requests are waiting already"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, QUEUE_FULL, message, retry_after=1.0)


def client_queue_full(max_waiting: int) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: no more requests of this client may wait."""
    message = f"{max_waiting:,} requests of this client are waiting already, the most that its token allows"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "CLIENT_QUEUE_FULL", message, retry_after=1.0)


def too_many_requests(max_requests: int) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: the client may have no more requests at once."""
    message = f"this client has {max_requests:,} requests already, the most at once that its token allows"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS", message, retry_after=1.0)


def features_full(num_bytes: int) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: no more recordings may wait."""
    message = f"{num_bytes / 1024**2:,.0f} MiB of recordings are waiting already"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, QUEUE_FULL, message, "source.features", retry_after=1.0)


def out_of_memory() -> RequestError:
    """Returns RESOURCE_EXHAUSTED: the request needs more memory than there is now."""
    message = "the request needs more memory than there is now"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, OUT_OF_MEMORY, message, retry_after=1.0)


def too_few_slots(num_needed: int, num_slots: int, field: str) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: the server can never run the request."""
    message = f"needs {num_needed} slots at once, and this model has {num_slots}"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "TOO_FEW_SLOTS", message, field)


def late(seconds: float) -> RequestError:
    """Returns DEADLINE_EXCEEDED: a call has begun, and its request has not arrived."""
    message = f"the request has not arrived within {seconds:g} seconds"
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "REQUEST_LATE", message)


def too_many_streams(num_open: int) -> RequestError:
    """Returns RESOURCE_EXHAUSTED: no more follow streams may be open."""
    message = f"{num_open:,} follow streams are open already"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS", message, retry_after=1.0)


def silent(seconds: float) -> RequestError:
    """Returns DEADLINE_EXCEEDED: the client of an open stream has sent nothing for too long."""
    message = f"the stream's client has sent nothing for {seconds:g} seconds"
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "CLIENT_SILENT", message)


def too_old(seconds: float) -> RequestError:
    """Returns DEADLINE_EXCEEDED: a stream has been open for too long."""
    message = f"the stream has been open for {seconds:g} seconds: open another one"
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "STREAM_TOO_OLD", message)


def stalled() -> RequestError:
    """Returns ABORTED: the reader of a stream has taken no message for too long."""
    message = "the stream's reader has taken nothing for too long"
    return RequestError(ErrorCode.ABORTED, "READER_STALLED", message)


def idle() -> RequestError:
    """Returns UNAVAILABLE: a stream has waited longest for its client where too many streams wait."""
    message = "too many streams wait for their clients"
    return RequestError(ErrorCode.UNAVAILABLE, "STREAM_IDLE", message, retry_after=0.0)


def not_a_number() -> RequestError:
    """Returns INTERNAL: the model has computed NaN or infinity."""
    return internal("NOT_A_NUMBER", "the model computed numbers that are not finite; a wider dtype may help")
