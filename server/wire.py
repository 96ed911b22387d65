"""Parses requests so that malformed ones get a status which names the field.

gRPC's own way answers a message that does not parse with UNKNOWN and the name of a Python class.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from .errors import invalid

M = TypeVar("M", bound=Message)

_LENGTH_DELIMITED = 2


def parse(cls: type[M], data: bytes) -> M:
    """The message that `data` holds. Raises RequestError."""
    message = cls()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        field = _not_utf8(cls.DESCRIPTOR, data)
        if field is not None:
            raise invalid(field, "NOT_UTF8", "is not valid UTF-8") from error
        raise invalid("", "MALFORMED", "the request is not a valid protobuf message") from error
    return message


def _not_utf8(descriptor: Any, data: bytes) -> str | None:
    """The path of the first string that is not UTF-8; None if there is none, or the data is no message."""
    raw = Empty()  # knows no fields, so all of them come out unparsed
    try:
        raw.ParseFromString(data)
    except DecodeError:
        return None
    counts: dict[int, int] = {}
    for unknown in UnknownFieldSet(raw):
        field = descriptor.fields_by_number.get(unknown.field_number)
        if field is None or unknown.wire_type != _LENGTH_DELIMITED:
            continue
        place = counts[field.number] = counts.get(field.number, -1) + 1
        name = f"{field.name}[{place}]" if field.is_repeated else field.name
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                unknown.data.decode("utf-8")
            except UnicodeDecodeError:
                return name
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            inner = _not_utf8(field.message_type, unknown.data)
            if inner is not None:
                return f"{name}.{inner}"
    return None
