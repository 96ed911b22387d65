"""Parses the bytes of a request. If they are malformed, the error names the field.

gRPC itself answers a message that does not parse with UNKNOWN and the name of a Python class.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ..errors import RequestError, invalid

M = TypeVar("M", bound=Message)

# How many entries of a repeated field are checked for UTF-8: more than any request may have.
_MAX_CHECKED = 1024


def parse(cls: type[M], data: bytes) -> M:
    """Returns the message that `data` holds. Raises RequestError."""
    message = cls()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise _parse_error(cls, data) from error
    return message


def _parse_error(cls: type[Message], data: bytes) -> RequestError:
    """Returns what is wrong with malformed data, in a time that does not depend on the number of fields.

    protobuf's parser does not say which string is not UTF-8. The parser reads the data again as a message with bytes in
    place of strings. Only the strings of that message are checked.
    """
    lenient = _with_bytes_for_strings(cls)()
    try:
        lenient.ParseFromString(data)
    except DecodeError:
        return invalid("", "MALFORMED", "the request is not a valid protobuf message")
    field = next(_invalid_strings(lenient, cls.DESCRIPTOR), None)
    if field is None:
        return invalid("", "NOT_UTF8", "a text of the request is not valid UTF-8")
    return invalid(field, "NOT_UTF8", "is not valid UTF-8")


def _invalid_strings(message: Message, descriptor: Any) -> Iterator[str]:
    """Yields the paths of the strings that are not UTF-8."""
    for lenient, value in message.ListFields():
        field = descriptor.fields_by_number[lenient.number]
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        for key, entry in itertools.islice(_entries_of(field, value), _MAX_CHECKED):
            name = field.name if key is None else f"{field.name}[{key}]"
            if isinstance(entry, Message):
                yield from (f"{name}.{inner}" for inner in _invalid_strings(entry, _value_type(field)))
            elif not _is_utf8(entry):
                yield name


def _entries_of(field: FieldDescriptor, value: Any) -> Iterator[tuple[object, Any]]:
    """Returns the entries of a field with their indexes or keys; None where the field has one value."""
    if not field.is_repeated:
        return iter([(None, value)])
    return iter(value.items() if _is_map(field) else enumerate(value))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _value_type(field: FieldDescriptor) -> Any:
    """Returns the type of the messages of a field; of a map, the type of its values."""
    message_type: Any = field.message_type
    return message_type.fields_by_name["value"].message_type if _is_map(field) else message_type


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@functools.cache
def _with_bytes_for_strings(cls: type[Message]) -> type[Message]:
    """Returns a message class with the same form on the wire, in which strings are bytes and need not be UTF-8."""
    pool = DescriptorPool()
    for file in _files_of(cls.DESCRIPTOR.file, set()):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        for message in proto.message_type:
            _replace_strings(message)
        pool.Add(proto)
    return GetMessageClass(pool.FindMessageTypeByName(cls.DESCRIPTOR.full_name))


def _files_of(file: Any, seen: set[str]) -> Iterator[Any]:
    """Yields a file and all files that it imports, imported files first."""
    if file.name not in seen:
        seen.add(file.name)
        for imported in file.dependencies:
            yield from _files_of(imported, seen)
        yield file


def _replace_strings(message: DescriptorProto) -> None:
    for field in message.field:
        if message.options.map_entry and field.name == "key":  # a key cannot be bytes
            continue
        if field.type == FieldDescriptorProto.TYPE_STRING:
            field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _replace_strings(nested)
