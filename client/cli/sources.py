"""Sources on the command line: a text, or what it describes: token ids, the messages of a chat, features in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import invalid_argument
from ..parameters import Source
from ..validation import find_problem

SourceKind = Literal["text", "token_ids", "chat", "features"]


def parse_source(text: str, kind: SourceKind) -> Source:
    """Returns the source that a text describes. Raises InvalidArgumentError."""
    if kind == "token_ids":
        return _parse_token_ids(text)
    if kind == "chat":
        return _parse_chat(text)
    return _read_features(text) if kind == "features" else text


def _parse_token_ids(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise invalid_argument("source.token_ids", "must be whole numbers, separated by spaces or commas") from None


def _parse_chat(text: str) -> Sequence[dict[str, str]]:
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise invalid_argument("source.chat", f"is no JSON: {error}") from None
    if not messages or find_problem(messages, Sequence[dict[str, str]]):
        raise invalid_argument("source.chat", 'must be a list of messages: [{"role": "user", "content": "Hello"}]')
    return messages


def _read_features(name: str) -> NDArray[np.floating]:
    try:
        return np.load(name, allow_pickle=False)
    except OSError as error:
        raise invalid_argument("source.features", f"{name}: {error.strerror or error}") from None
    except ValueError:
        raise invalid_argument("source.features", f"{name}: is no .npy file of numbers") from None
