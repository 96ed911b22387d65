"""Exceptions of this client: what the server said, with the field that is to blame.

Made from gRPC's errors in one place, so that none of those reach users.
"""

# google.rpc has no stubs.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field as member

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


@dataclass(eq=False)  # exceptions are told apart by identity, and hashable
class SidelightError(Exception):
    """A request that failed.

    Attributes:
        message: For people.
        status: The gRPC status code.
        field: The path of the field that is to blame, such as "capture.heads.list.heads[2].layer"; or empty.
        fields: All such fields, with what is wrong with each.
        reason: For programs: stable, such as "LAYER_OUT_OF_RANGE"; or empty.
        request_id: The request's id, where it is known.
        retry_delay: In seconds, when a retry may help; None if the server did not say.
    """

    message: str
    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    field: str = ""
    fields: dict[str, str] = member(default_factory=dict[str, str])
    reason: str = ""
    request_id: str = ""
    retry_delay: float | None = None

    def __str__(self) -> str:
        return self.message


class InvalidArgumentError(SidelightError):
    """Something in the request is wrong, whatever the state of the server."""


class NotFoundError(SidelightError):
    """A name stands for nothing on this server."""


class UnimplementedError(SidelightError):
    """The contract has it, this server does not."""


class ResourceExhaustedError(SidelightError):
    """Too much was asked, or too many are asking."""


class DeadlineExceededError(SidelightError):
    """The time allowed was over first."""


class CancelledError(SidelightError):
    """The call was cancelled."""


class UnavailableError(SidelightError):
    """No server answers there, or it is shutting down."""


class InternalError(SidelightError):
    """The server's own fault."""


_CLASSES: dict[grpc.StatusCode, type[SidelightError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def invalid(field: str, message: str) -> InvalidArgumentError:
    """An error found before anything was sent."""
    return InvalidArgumentError(
        f"{field}: {message}", grpc.StatusCode.INVALID_ARGUMENT, field, {field: message}, "INVALID"
    )


def describe(error: SidelightError) -> str:
    """An error in one line, with the field that is to blame."""
    line = " ".join(str(error).split())
    return line if not error.field or error.field in line else f"{error.field}: {line}"


def from_rpc_error(error: grpc.RpcError) -> SidelightError:
    """Our exception for one of gRPC's, of the synchronous or the asyncio kind."""
    status = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    message = error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)
    trailers = error.trailing_metadata() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else None
    made = _CLASSES.get(status, SidelightError)(message or status.name.lower().replace("_", " "), status)
    _fill(made, trailers or ())
    return made


def _fill(error: SidelightError, trailers: Iterable[tuple[str, str | bytes]]) -> None:
    """Takes what google.rpc details say."""
    data = next((value for key, value in trailers if key == _DETAILS), None)
    if not isinstance(data, bytes):
        return
    status = status_pb2.Status()
    try:
        status.ParseFromString(data)
    except Exception:  # a proxy's business: the status itself still counts
        return
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    request, retry = error_details_pb2.RequestInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(bad):
            for violation in bad.field_violations:
                said = error.fields.get(violation.field)
                error.fields[violation.field] = f"{said}; {violation.description}" if said else violation.description
            error.field = next(iter(error.fields), "")
        elif detail.Unpack(info):
            error.reason = info.reason
        elif detail.Unpack(request):
            error.request_id = request.request_id
        elif detail.Unpack(retry):
            error.retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
