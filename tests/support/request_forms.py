"""A request in other forms, and the fields that it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from sidelight.v1 import attention_pb2 as attention
from sidelight.v1 import attribution_service_pb2 as pb
from sidelight.v1 import text_pb2 as text

# The codes of the units of offsets, and the bytes of a unit.
CODES = {
    text.OFFSET_UNIT_UNSPECIFIED: ("utf-32-le", 4),
    text.OFFSET_UNIT_CODE_POINT: ("utf-32-le", 4),
    text.OFFSET_UNIT_UTF16: ("utf-16-le", 2),
    text.OFFSET_UNIT_UTF8: ("utf-8", 1),
}


def inner_messages(message: Message) -> Iterator[Message]:
    """Yields the messages in the fields of a message, at any depth."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                yield inner
                yield from inner_messages(inner)


# ---- the same request in another form --------------------------------------------------------------------------------


def copy_of(message: pb.AttributeRequest) -> pb.AttributeRequest:
    """Returns a copy."""
    copy = pb.AttributeRequest()
    copy.CopyFrom(message)
    return copy


def in_code_points(message: pb.AttributeRequest) -> pb.AttributeRequest:
    """The same request with offsets in code points. Its source and its given target, if they have spans, are texts."""
    copy = copy_of(message)
    encoding, size = CODES[message.offset_unit]
    copy.ClearField("offset_unit")
    units = copy.capture.units if copy.capture.HasField("units") else attention.UnitOptions()
    for field, spans in units.ListFields():
        if "sp" not in field.name and "slices" not in field.name:
            continue
        whole = (copy.source if field.name.startswith("source") else copy.given).text.encode(encoding)
        for span in spans:
            for name in ("begin", "end"):
                setattr(span, name, len(whole[: getattr(span, name) * size].decode(encoding)))
    return copy


def without_attention(message: pb.AttributeRequest) -> pb.AttributeRequest:
    """The same request for tokens and scores alone."""
    copy = copy_of(message)
    copy.capture.Clear()
    copy.capture.none = True
    if not any(score >= attention.SCORE_CONTRAST_LOGITS for score in copy.scores):
        copy.ClearField("contrast")
    copy.contrast.ClearField("subtract_attention") if copy.HasField("contrast") else None
    return copy


def with_target(message: pb.AttributeRequest, ids: Sequence[int]) -> pb.AttributeRequest:
    """The same request with the ids of a target in place of its decoding."""
    copy = copy_of(message)
    copy.given.token_ids.ids.extend(ids)
    return copy


# ---- which fields there are ------------------------------------------------------------------------------------------


def paths_of(message: Message, path: str = "") -> set[str]:
    """The paths of all fields that are set, without indexes."""
    paths: set[str] = set()
    for field, value in message.ListFields():
        paths.add(path + field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                paths |= paths_of(inner, f"{path}{field.name}.")
    return paths


def paths_of_contract(descriptor: Any, path: str = "") -> set[str]:
    """The paths of all fields that a message can have."""
    paths = {path + field.name for field in descriptor.fields}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            paths |= paths_of_contract(field.message_type, f"{path}{field.name}.")
    return paths
