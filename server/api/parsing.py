"""Parses requests so that malformed ones get a status which names the field.

gRPC's own way answers a message that does not parse with UNKNOWN and the name of a Python class.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ..errors import RequestError, invalid

M = TypeVar("M", bound=Message)

# How many entries of a repeated field are looked at for one that is not UTF-8: more than any request may have.
_LOOKED_AT = 1024


def parse(cls: type[M], data: bytes) -> M:
    """The message that `data` holds. Raises RequestError."""
    message = cls()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _fault(cls, data) from error
    return message


def _fault(cls: type[Message], data: bytes) -> RequestError:
    """What is wrong with data that is no message, in time that does not depend on how many fields it has.

    protobuf's parser does not say which string is not UTF-8. It parses the data again with bytes in place of strings,
    after which only the strings that the message knows are left to be looked at.
    """
    lenient = _with_bytes_for_strings(cls)()
    try:
        lenient.ParseFromString(data)
    except DecodeError:
        return invalid("", "MALFORMED", "the request is not a valid protobuf message")
    field = next(_not_utf8(lenient, cls.DESCRIPTOR), None)
    if field is None:
        return invalid("", "NOT_UTF8", "a text of the request is not valid UTF-8")
    return invalid(field, "NOT_UTF8", "is not valid UTF-8")


def _not_utf8(message: Message, descriptor: Any) -> Iterator[str]:
    """The paths of the strings that are not UTF-8, among those looked at."""
    for lenient, value in message.ListFields():
        field = descriptor.fields_by_number[lenient.number]
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        values: Sequence[Any] = value if field.is_repeated else (value,)
        for place, one in enumerate(itertools.islice(values, _LOOKED_AT)):
            name = f"{field.name}[{place}]" if field.is_repeated else field.name
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                yield from (f"{name}.{inner}" for inner in _not_utf8(one, field.message_type))
            elif not _is_utf8(one):
                yield name


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@functools.cache
def _with_bytes_for_strings(cls: type[Message]) -> type[Message]:
    """The class of a message that is the same on the wire, but for strings, which need not be UTF-8."""
    pool = DescriptorPool()
    for file in _files(cls.DESCRIPTOR.file, set()):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            _put_bytes(message)
        pool.Add(proto)
    return GetMessageClass(pool.FindMessageTypeByName(cls.DESCRIPTOR.full_name))


def _files(file: Any, seen: set[str]) -> Iterator[Any]:
    """A file and all that it imports, imported ones first."""
    if file.name not in seen:
        seen.add(file.name)
        for imported in file.dependencies:
            yield from _files(imported, seen)
        yield file


def _put_bytes(message: DescriptorProto) -> None:
    for field in message.field:
        if message.options.map_entry and field.name == "key":  # which bytes cannot be
            continue
        if field.type == FieldDescriptorProto.TYPE_STRING:
            field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _put_bytes(nested)
