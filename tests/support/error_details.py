"""What a client must never read in an error, and the check of everything that an error carries."""

from __future__ import annotations

import re
from collections.abc import Sequence

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

# What shows the inside of a server: classes of Python, modules, paths of its files, objects, traces, addresses.
_LEAKS = re.compile(
    r"Traceback|File \"|line \d+, in |\.py\b|\bself\.|<class|<[\w.]+ object|\bobject at 0x|0x[0-9a-f]{8}|site-packages"
    r"|/usr/|/home/|/root/|/tmp/|/var/|/opt/|/work/|\bsidelight\.(server|kernels|client)\b|\b(torch|numpy|transformers)\."
    r"|\b[A-Z]\w*(Error|Exception|Warning)\b|NoneType|has no attribute|unexpected keyword|positional argument"
    r"|not subscriptable|list index|invalid literal|codec can't|grpc\.aio|cygrpc|_pb2"
)
_MAX_BYTES = 4096
# Codes that the server answers bad requests with. Never UNKNOWN, nor INTERNAL: nothing here is unforeseen.
EXPECTED_CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
}
_DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RequestInfo,
    error_details_pb2.RetryInfo,
)


def find_problem(code: grpc.StatusCode, message: str, details: bytes = b"", sent: Sequence[bytes] = ()) -> str:
    """Returns what is wrong with a status; empty if nothing is.

    Args:
        code: The status code.
        message: The status message.
        details: The trailer grpc-status-details-bin; empty if there is none.
        sent: What the client has sent: an error may quote that.
    """
    if code not in EXPECTED_CODES:
        return f"{code.name}: {message}"
    if len(message.encode()) > _MAX_BYTES or len(details) > _MAX_BYTES:
        return f"an error of {len(message.encode())} and {len(details)} bytes"
    for text in (message, *_texts_of(details)):
        found = _LEAKS.search(text)
        if found and found.group().encode() not in b"".join(sent):
            return f"{code.name} says {found.group()!r}: {text}"
    return ""


def _texts_of(details: bytes) -> list[str]:
    """All texts of a serialized google.rpc.Status."""
    status = status_pb2.Status.FromString(details)
    texts = [status.message]
    for packed in status.details:
        known: list[Message] = [cls() for cls in _DETAILS if packed.Is(cls.DESCRIPTOR)]
        assert known, f"a detail of another type: {packed.type_url}"
        packed.Unpack(known[0])
        texts.append(str(known[0]))
    return texts
