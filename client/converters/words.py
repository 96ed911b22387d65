"""The client's words for the contract's enums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def enum_words(enum: Any, prefix: str) -> dict[Any, Any]:
    """Maps an enum's numbers to the client's words: ATTENTION_KIND_CROSS to "cross". Leaves out "unspecified"."""
    names: Mapping[str, int] = dict(enum.items())
    return {number: name.removeprefix(prefix).lower() for name, number in names.items() if number}


def enum_number(words: Mapping[int, str], word: str | None) -> Any:
    """Returns the enum's number for a known word; for None 0, which is "unspecified"."""
    return 0 if word is None else next(number for number, known in words.items() if known == word)
