"""Texts of requests become messages: plain text, token ids, chats, and the features of a recording."""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sidelight.v1 import text_pb2

from ..errors import field_errors, invalid_argument
from ..parameters import Source
from ..validation import check_value, is_sequence


def build_text(text: Source, field: str) -> text_pb2.Text:
    """Builds the Text of a text, of token ids, of a chat or of a recording. Raises InvalidArgumentError."""
    if isinstance(text, str):
        with field_errors(field):
            return text_pb2.Text(text=text)
    if isinstance(text, np.ndarray) and text.ndim > 1:
        return text_pb2.Text(features=_build_features(text, field))
    if not is_sequence(text):
        raise invalid_argument(field, "must be text, a sequence of token ids, or the messages of a chat")
    items = list(text)
    if items and all(isinstance(item, Mapping) for item in items):
        messages = cast("list[Mapping[str, str]]", items)
        return text_pb2.Text(chat=_build_chat(messages, field))
    check_value(items, Sequence[int], field)
    with field_errors(field):
        return text_pb2.Text(token_ids=text_pb2.TokenIds(ids=cast("list[int]", items)))


def _build_features(array: NDArray[Any], field: str) -> text_pb2.Features:
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        problem = "must be an array of floating-point numbers [mel bins, frames], not"
        raise invalid_argument(field, f"{problem} {array.dtype} {list(array.shape)}")
    return text_pb2.Features(shape=array.shape, values=array.astype("<f4").tobytes())


def _build_chat(messages: Sequence[Mapping[str, str]], field: str) -> text_pb2.Chat:
    chat = text_pb2.Chat()
    for index, message in enumerate(messages):
        path = f"{field}.chat.messages[{index}]"
        chat_message = chat.messages.add()
        for name in ("role", "content"):
            if name not in message:
                raise invalid_argument(field, f"messages[{index}] has no {name}")
            check_value(message[name], str, f"{path}.{name}")
            with field_errors(f"{path}.{name}"):
                setattr(chat_message, name, message[name])
        for name in message:
            if name not in ("role", "content"):
                raise invalid_argument(f"{path}.{name}", "is not known: a message has a role and a content")
    return chat
