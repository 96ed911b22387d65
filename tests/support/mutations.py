"""Mutates protobuf messages: their fields, as their descriptors have them, and their bytes.

All choices come from one `random.Random`. So a seed gives the same mutants again, and hypothesis, whose
`strategies.randoms` gives such an object, can make a failing mutant smaller.
"""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

_INTEGERS = (0, 1, 2, 3, 63, 64, 65, 127, 255, 256, 1023, 1025, 65_537)
_INTEGERS += (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 1e30, -1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    " ",
    "\0",
    "a",
    "A dog.",
    "naïve ﬁne \u202e שלום مرحبا",
    "日本語です。",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\ufdfa" * 40,
    "e\u0301\u0323" * 20,
    "<b>A <i/> &amp; dog</b>",
    "<![CDATA[ <p>]]></p>",
    "{x} %s {{y}} \\n",
    "0-0 1-1-0.5 9-99999999999",
    "../../etc/passwd",
    "\r\nx: y",
    "\t\n\u2028\u00a0\ufeff\ufffd",
    "word " * 300,
    "x" * 5000,
    "</s><unk><pad>▁",
)
_CHARACTERS = "\0\t \u0301\u200b\ud7ff\ufffd\U0010ffff"
_BYTES = (b"", b"\0", b"\xff" * 7, b"\x00\x00\x80\x7f" * 8, b"\x00\x00\xc0\x7f" * 80, b"RIFF" + b"\0" * 100)
# Bytes that mean much to a parser: tags, wire types, lengths.
_INTERESTING = (0, 1, 2, 7, 8, 10, 18, 26, 34, 42, 63, 64, 127, 128, 250, 255)
_MAX_ENTRIES, _MAX_BYTES, _MAX_DEPTH = 12, 16_384, 6


class MessageMutator:
    """Makes mutants of messages."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def mutate(self, message: Message, others: list[bytes]) -> bytes:
        """Returns the bytes of a mutant: fields are changed, or bytes, or both. `others` are spliced in, at times."""
        mutant = type(message)()
        mutant.CopyFrom(message)
        how = self._chance.random()
        if how < 0.75:
            for _ in range(self._chance.choice((1, 1, 2, 3, 8))):
                self.mutate_fields(mutant)
        data = mutant.SerializeToString()
        return data[:_MAX_BYTES] if how < 0.55 else self.mutate_bytes(data, others)

    # ---- fields -----------------------------------------------------------------------------------------------------

    def mutate_fields(self, message: Any, depth: int = 0) -> None:
        """Changes one field, of the message itself or of a message inside."""
        inner = [(field, value) for field, value in message.ListFields() if field.type == Field.TYPE_MESSAGE]
        if inner and depth < _MAX_DEPTH and self._chance.random() < 0.7:
            field, value = self._chance.choice(inner)
            if not field.is_repeated:
                self.mutate_fields(value, depth + 1)
                return
            if not _is_map(field) and len(value) and self._chance.random() < 0.8:
                self.mutate_fields(self._chance.choice(value), depth + 1)
                return
        if message.DESCRIPTOR.fields:
            self._change(message, self._chance.choice(message.DESCRIPTOR.fields), depth)

    def _change(self, message: Any, field: Field, depth: int) -> None:
        if self._chance.random() < 0.2:
            message.ClearField(field.name)
        elif _is_map(field):
            return
        elif field.is_repeated:
            self._change_entries(getattr(message, field.name), field, depth)
        elif field.type == Field.TYPE_MESSAGE:
            self._fill(getattr(message, field.name), depth)
        else:
            setattr(message, field.name, self._value(field, getattr(message, field.name)))

    def _change_entries(self, entries: Any, field: Field, depth: int) -> None:
        if len(entries) and self._chance.random() < 0.3:
            del entries[self._chance.randrange(len(entries))]
            return
        for _ in range(self._chance.choice((1, 1, 2, _MAX_ENTRIES))):
            if field.type == Field.TYPE_MESSAGE:
                self._fill(entries.add(), depth)
            else:
                entries.append(self._value(field, entries[-1] if len(entries) else field.default_value))

    def _fill(self, message: Any, depth: int) -> None:
        message.SetInParent()
        if depth < _MAX_DEPTH and message.DESCRIPTOR.fields:
            for _ in range(self._chance.choice((0, 1, 2))):
                self._change(message, self._chance.choice(message.DESCRIPTOR.fields), depth + 1)

    def _value(self, field: Field, before: Any) -> Any:
        """Returns another value of a field: at a limit of its type, at random, or close to what it was before."""
        if field.type == Field.TYPE_STRING:
            return self._text(before if isinstance(before, str) else "")
        if field.type == Field.TYPE_BYTES:
            return self._chance.choice((*_BYTES, self._chance.randbytes(self._chance.randrange(64))))
        if field.type == Field.TYPE_BOOL:
            return self._chance.random() < 0.5
        if field.cpp_type in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
            value = self._chance.choice((*_FLOATS, self._chance.uniform(-2, 2)))
            return value if field.cpp_type == Field.CPPTYPE_DOUBLE else _fit(value)
        if field.type == Field.TYPE_ENUM:
            numbers = [value.number for value in field.enum_type.values]
            return self._chance.choice((*numbers, numbers[-1] + 1, 2**31 - 1, -1))
        bits = 64 if field.cpp_type in (Field.CPPTYPE_INT64, Field.CPPTYPE_UINT64) else 32
        is_signed = field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64)
        number = self._chance.choice((*_INTEGERS, before or 0, (before or 0) + 1, self._chance.randrange(70)))
        number = number * self._chance.choice((1, 1, -1)) if is_signed else number
        least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
        return max(least, min(most, number))

    def _text(self, before: str) -> str:
        text = self._chance.choice((*_TEXTS, before, before))
        how = self._chance.random()
        if how < 0.2:
            return before + text
        if how < 0.4 and text:
            place = self._chance.randrange(len(text))
            return text[:place] + self._chance.choice(_CHARACTERS) + text[place:]
        return text

    # ---- bytes ------------------------------------------------------------------------------------------------------

    def mutate_bytes(self, data: bytes, others: list[bytes]) -> bytes:
        """Changes, removes, repeats and splices bytes."""
        mutant = bytearray(data)
        for _ in range(self._chance.choice((1, 1, 2, 4, 16))):
            place = self._chance.randrange(len(mutant) + 1)
            end = min(len(mutant), place + self._chance.choice((1, 1, 2, 4, 16, 64)))
            how = self._chance.randrange(6)
            if how == 0 and place < len(mutant):
                mutant[place] ^= 1 << self._chance.randrange(8)
            elif how == 1 and place < len(mutant):
                mutant[place] = self._chance.choice(_INTERESTING)
            elif how == 2:
                del mutant[place:end]
            elif how == 3:
                mutant[place:place] = mutant[place:end] * self._chance.choice((1, 2, 8))
            elif how == 4:
                mutant[place:place] = self._chance.randbytes(self._chance.choice((1, 2, 8)))
            elif others:
                other = self._chance.choice(others)
                begin = self._chance.randrange(len(other) + 1)
                mutant[place:end] = other[begin : begin + 64]
        return bytes(mutant[:_MAX_BYTES])


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _fit(value: float) -> float:
    """Returns a number that a float32 can be made of."""
    return value if value != value or abs(value) == float("inf") else max(-3e38, min(3e38, value))
