"""What a request can be told when it fails: a code, a reason for programs, the field that is to blame.

Every error that reaches a client is made here. Texts name fields and limits, never classes, paths or traces; what they
quote of a request is cut here, so that all trailers of a call stay below 4 KiB: clients refuse more than 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

# Bytes of a message and of a field's path. A message is sent three times, in ways that take up to six times its bytes.
_MESSAGE_BYTES, _FIELD_BYTES = 480, 160
# Characters of a value that a message quotes.
_QUOTED = 60


class ErrorCode(IntEnum):
    """The codes of google.rpc.Code that requests end with, which are gRPC's: api.status knows these."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


@dataclass
class RequestError(Exception):
    """A request that cannot be done.

    `field` is a path in the request, such as "capture.heads.list.heads[2].layer"; empty when no field is to blame.
    `reason` is stable and for programs. `retry_after` is in seconds.
    """

    code: ErrorCode
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
    return RequestError(ErrorCode.INVALID_ARGUMENT, reason, message, field)


def unimplemented(field: str, message: str = "this server does not do that yet") -> RequestError:
    """UNIMPLEMENTED: in the contract, not in this server."""
    return RequestError(ErrorCode.UNIMPLEMENTED, "NOT_IMPLEMENTED", message, field)


def not_found(field: str, reason: str, message: str) -> RequestError:
    """NOT_FOUND: a name that stands for nothing here."""
    return RequestError(ErrorCode.NOT_FOUND, reason, message, field)


def internal(
    reason: str = "INTERNAL", message: str = "internal error; the server's log has the details"
) -> RequestError:
    """INTERNAL: the server's own fault."""
    return RequestError(ErrorCode.INTERNAL, reason, message)


def expired() -> RequestError:
    """DEADLINE_EXCEEDED: the request's own time is up."""
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the deadline has passed")


def stopped() -> RequestError:
    """UNAVAILABLE: the server ends; another one may serve the request."""
    message = "the server is shutting down"
    return RequestError(ErrorCode.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=1.0)


def broken() -> RequestError:
    """UNAVAILABLE: the server has failed as a whole, and ends."""
    message = "the model's engine has failed; the server's log has the details"
    return RequestError(ErrorCode.UNAVAILABLE, "ENGINE_FAILED", message, retry_after=1.0)


def queue_full(waiting: int) -> RequestError:
    """RESOURCE_EXHAUSTED: no more requests may wait."""
    message = f"{waiting:,} requests are waiting already"
    return RequestError(ErrorCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", message, retry_after=1.0)


def late(seconds: float) -> RequestError:
    """DEADLINE_EXCEEDED: a request that does not arrive, though its call has begun."""
    message = f"the request has not arrived within {seconds:.0f} seconds"
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, "REQUEST_LATE", message)


def stalled() -> RequestError:
    """ABORTED: a stream whose reader has taken nothing for too long."""
    message = "the stream's reader has taken nothing for too long"
    return RequestError(ErrorCode.ABORTED, "READER_STALLED", message)


def not_a_number() -> RequestError:
    """INTERNAL: the model has computed NaN or infinity."""
    return internal("NOT_A_NUMBER", "the model computed numbers that are not finite; a wider dtype may help")
