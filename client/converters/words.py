"""The client's words for the contract's enums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def enum_words(enum: Any, prefix: str) -> dict[Any, Any]:
    """Maps an enum's numbers to the client's words: ATTENTION_KIND_CROSS to "cross". Leaves out "unspecified"."""
    names: Mapping[str, int] = dict(enum.items())
    return {number: name.removeprefix(prefix).lower() for name, number in names.items() if number}
