"""The exceptions of this client. They carry what the server answered, with the field that is at fault.

`from_rpc_error` and `from_error_message` are the only places that make these exceptions of gRPC's errors and of the
contract's: users never see gRPC's own.
"""

# google.rpc has no stubs.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as dataclass_field

import grpc
from google.rpc import error_details_pb2, status_pb2
from sidelight.v1 import attribution_service_pb2 as service_pb

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(eq=False)  # exceptions compare by identity, and stay hashable
class SidelightError(Exception):
    """A request that failed.

    Attributes:
        message: A text for people.
        status: The gRPC status code.
        field: The path of the field at fault, such as "capture.heads.list.heads[2].layer"; or empty.
        fields: All fields at fault, with a description for each.
        reason: A stable code for programs, such as "LAYER_OUT_OF_RANGE"; or empty.
        request_id: The id of the request, if it is known.
        retry_delay: Seconds to wait before a retry, which may then succeed; None if the server did not say.
        reference: What the log of the server has this error under, where the server did not foresee it; or empty.
    """

    message: str
    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    field: str = ""
    fields: dict[str, str] = dataclass_field(default_factory=dict[str, str])
    reason: str = ""
    request_id: str = ""
    retry_delay: float | None = None
    reference: str = ""

    def __str__(self) -> str:
        return self.message


class InvalidArgumentError(SidelightError):
    """The request is wrong, whatever the state of the server."""


class NotFoundError(SidelightError):
    """The server has nothing of this name."""


class UnimplementedError(SidelightError):
    """The contract has this feature, but this server does not."""


class ResourceExhaustedError(SidelightError):
    """The request asks for too much, or the server has too many requests."""


class DeadlineExceededError(SidelightError):
    """The timeout passed before the request was done."""


class CancelledError(SidelightError):
    """The call was cancelled."""


class UnavailableError(SidelightError):
    """No server answers at the address, or the server is shutting down."""


class UnauthenticatedError(SidelightError):
    """The server does not know who calls: the token is absent, wrong or expired."""


class InternalError(SidelightError):
    """The server is at fault."""


_ERROR_CLASSES: dict[grpc.StatusCode, type[SidelightError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.INTERNAL: InternalError,
}

# What replaces gRPC's own messages about calls that this side has ended, such as "Stream removed (Deadline Exceeded)".
_MESSAGES: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "the deadline has passed",
    grpc.StatusCode.CANCELLED: "the stream was cancelled",
}
# What gRPC says of a stream that somebody between client and server has reset, such as a proxy whose server has ended.
_RESET, _RESET_STATUSES = "RST_STREAM", (grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
_CLOSED = "Channel closed"  # what gRPC says of a call that was cancelled because its client was closed

# What gRPC says where a connection fails for TLS, and what that means.
_NOT_CONNECTED = "failed to connect to all addresses"
_TLS_FAILURES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: (?P<why>[a-z ]+))?"),
        "the server's certificate is not trusted{why}; tls names the file with its authority",
    ),
    (re.compile("Hostname Verification Check failed"), "the server's certificate is for another name"),
    (re.compile("WRONG_VERSION_NUMBER"), "the server does not speak TLS, and this client does"),
    (
        re.compile("Socket closed|Connection reset|Broken pipe"),
        "the server has closed the connection at once: it may want TLS, or a certificate of the client that it trusts",
    ),
)

_STATUSES: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}


def invalid_argument(field: str, message: str) -> InvalidArgumentError:
    """Builds the error for a field that the client refuses before it sends the request."""
    return InvalidArgumentError(
        f"{field}: {message}", grpc.StatusCode.INVALID_ARGUMENT, field, {field: message}, "INVALID"
    )


def describe_error(error: SidelightError) -> str:
    """Describes an error in one line, with the field at fault."""
    line = " ".join(str(error).split())
    return line if not error.field or error.field in line else f"{error.field}: {line}"


def from_rpc_error(error: grpc.RpcError) -> SidelightError:
    """Converts an error of gRPC, synchronous or asyncio, into the exception of this module."""
    status = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    message = error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)
    if status in _RESET_STATUSES and _RESET in (message or ""):
        status = grpc.StatusCode.UNAVAILABLE
    trailers = error.trailing_metadata() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    exception = _ERROR_CLASSES.get(status, SidelightError)(message or status.name.lower().replace("_", " "), status)
    if not _add_details(exception, trailers or ()) and status in _MESSAGES:
        is_closed = status is grpc.StatusCode.CANCELLED and _CLOSED in exception.message
        exception.message = "the client is closed" if is_closed else _MESSAGES[status]
    if status is grpc.StatusCode.UNAVAILABLE and _NOT_CONNECTED in exception.message:
        _explain_tls(exception)
    return exception


def _explain_tls(exception: SidelightError) -> None:
    """Says what is wrong with TLS, if that is why there is no connection."""
    for pattern, meaning in _TLS_FAILURES:
        if match := pattern.search(exception.message):
            why = match.groupdict().get("why")
            exception.message = meaning.format(why=f" ({why})" if why else "")
            exception.reason = "TLS_FAILED"
            return


def from_error_message(message: service_pb.Error, request_id: str, path: str) -> SidelightError:
    """Converts the error of one text on a stream of many. Fields are named as in a request of its own, below `path`."""
    status = _STATUSES.get(message.code, grpc.StatusCode.UNKNOWN)
    error = _ERROR_CLASSES.get(status, SidelightError)(message.message.removeprefix(path), status)
    error.reason, error.request_id, error.reference = message.reason, request_id, message.reference
    if message.field:
        error.field = message.field.removeprefix(path)
        error.fields = {error.field: error.message.removeprefix(f"{error.field}: ")}
    if message.HasField("retry_delay"):
        error.retry_delay = message.retry_delay.ToTimedelta().total_seconds()
    return error


def _add_details(error: SidelightError, trailers: Iterable[tuple[str, str | bytes]]) -> bool:
    """Fills an exception from the google.rpc details in the trailers. Returns whether there are any."""
    data = next((value for key, value in trailers if key == _DETAILS_KEY), None)
    if not isinstance(data, bytes):
        return False
    status = status_pb2.Status()
    try:
        status.ParseFromString(data)
    except Exception:  # a proxy may write its own details; the status itself still counts
        return False
    bad_request, error_info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    request_info, retry_info = error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(bad_request):
            for violation in bad_request.field_violations:
                previous, description = error.fields.get(violation.field), violation.description
                error.fields[violation.field] = f"{previous}; {description}" if previous else description
            error.field = next(iter(error.fields), "")
        elif detail.Unpack(error_info):
            error.reason, error.reference = error_info.reason, error_info.metadata.get("reference", "")
        elif detail.Unpack(request_info):
            error.request_id = request_info.request_id
        elif detail.Unpack(retry_info):
            error.retry_delay = retry_info.retry_delay.ToTimedelta().total_seconds()
    return True


@contextmanager
def field_errors(field: str) -> Generator[None, None, None]:
    """A context that turns protobuf's errors about a value into InvalidArgumentError for this field."""
    try:
        yield
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise invalid_argument(
            field, f"has a lone surrogate, U+{code:04X} at index {error.start}: no text may have one"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        reason = str(error)  # it quotes a number that is out of range with all its digits
        raise invalid_argument(field, reason if len(reason) <= 200 else f"{reason[:199]}…") from error
