"""Which field of a model's file is to blame, and how that is said: in the file's words, not in those of a library.

Knows JSON; knows neither models nor tokenizers, which it has made again without one field after another.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from .files import CheckpointError

# Seconds after which no other field is tried, of all files of a model together.
_PATIENCE = 10.0

# A number that is no layer, width or token of any model.
_ABSURD = 10**6

# Where the families' code is.
_LIBRARY = str(Path(transformers.__file__).parent)

# Numbers that go together with many others, as a model's widths and its heads must.
_NUMBERS = (1, 64)

# Characters of a value, and of what a library says, that a message quotes.
_SHOWN, _SAID = 60, 200

# What a text has that is for programmers: words of Python, names of classes and of functions.
_CODE = re.compile(
    r"error|exception|traceback|object|class\b|None|True|False|__|[a-z_]\.[a-z_]|\w\(\)|torch|"
    r"\b(str|dict|tuple|int|bool|float|list)\b|instance|argument|tensor|power|_idx|\bhub\b|/",
    re.IGNORECASE,
)
_NAMES = re.compile(r"[a-z][A-Z]|[A-Z][a-z]+[A-Z]")
# What huggingface_hub puts before the reason of a configuration's own checks.
_VALIDATOR = re.compile(r"^Class validation error for validator '\w+': ValueError: ")


def wrong_field(file: str, name: str, value: object, must_be: str | None = None, why: str = "") -> CheckpointError:
    """The error for a field that is not what it must be, or cannot be what it is."""
    shown = json.dumps(value, ensure_ascii=False, default=lambda _: "...")
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    problem = f"cannot be {shown}" if must_be is None else f"must be {must_be}, not {shown}"
    return CheckpointError(f"{file}: {name} {problem}{why and f': {why}'}")


def deadline() -> float:
    """When the search for a field to blame ends, by the monotonic clock, if it begins now."""
    return time.monotonic() + _PATIENCE


def field_to_blame(
    fields: Mapping[str, Any],
    error: Exception,
    failure: Callable[[Mapping[str, Any]], Exception | None],
    end: float,
) -> str | None:
    """The first field without which, or with another number or an empty list in which, a trial works; None: no such.

    `failure` is a trial with other fields: what it raises, or None. A field is blamed only where a trial with the
    fields as they are fails as the model did, with `error`. No trial begins after `end`.
    """
    try:
        if time.monotonic() > end or not _is_same(failure(fields), error):  # it is not seen here, or not in the fields
            return None
        for name, changed in _changes(fields):
            if time.monotonic() > end:
                break
            if failure(changed) is None:
                return name
    except RecursionError:
        pass
    return None


def _is_same(tried: Exception | None, error: Exception) -> bool:
    """Whether a trial failed as the model did: with the same words, or at the same place of a family's code.

    Numbers of a message differ with the lengths of what is run, and all of it with the device.
    """
    if tried is None or type(tried) is not type(error):
        return False
    place = _place(error)
    return str(tried) == str(error) or (place is not None and place == _place(tried))


def _place(error: Exception) -> tuple[str, int | None] | None:
    """The innermost line of transformers that an error came through."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next(((frame.filename, frame.lineno) for frame in frames if frame.filename.startswith(_LIBRARY)), None)


def _changes(fields: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The fields with one changed, by its name: what is odd comes first."""
    names = sorted(fields, key=lambda name: not _is_odd(fields[name]))
    for name in names:
        yield name, {other: value for other, value in fields.items() if other != name}
    for number, name in itertools.product(_NUMBERS, names):  # a default may go together with the others no better
        if isinstance(fields[name], int) and not isinstance(fields[name], bool):
            yield name, {**fields, name: number}
    for name in names:  # some must be there
        if isinstance(fields[name], list):
            yield name, {**fields, name: []}


def _is_odd(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < _ABSURD


def plain_words(error: BaseException) -> str:
    """What a library says of a value, where that is for people; otherwise nothing."""
    line = _VALIDATOR.sub("", " ".join(str(error).split())).rstrip(".")
    if not isinstance(error, ValueError) and not str(error).startswith("Class validation error"):
        return ""
    return "" if len(line) > _SAID or _CODE.search(line) or _NAMES.search(line) else line


def declared_types(cls: type) -> Mapping[str, Any]:
    """The types that a class declares its fields with; empty where they cannot be found."""
    try:
        return typing.get_type_hints(cls, localns={"torch": torch})
    except Exception:  # names that are not there when the program runs
        return {}


def words_of_type(declared: Any, value: object) -> str | None:
    """What a field of a declared type must be; None where the value is that, or where the type does not say."""
    words: list[str] = []
    kinds = _kinds(declared)
    for kind in kinds:
        found = _words(kind, value, takes_whole=int in kinds)
        if found is None:  # it is that
            return None
        words += [found] * (bool(found) and found not in words)
    if int in kinds and float in kinds:
        words.remove("a whole number")
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or None


def _kinds(declared: Any) -> list[Any]:
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return [kind for each in typing.get_args(declared) for kind in _kinds(each)]
    return [declared]


def _words(kind: Any, value: object, *, takes_whole: bool) -> str | None:
    """The words for one type, empty where there are none; None where the value is of it."""
    origin = typing.get_origin(kind) or kind
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is Literal:
        options = typing.get_args(kind)
        return None if value in options else " or ".join(json.dumps(option) for option in options)
    if origin is int:
        return None if is_number and isinstance(value, int) else "a whole number"
    if origin is float:
        if is_number and isinstance(value, int) and not takes_whole:
            return "a number with a decimal point"
        return None if is_number else "a number"
    simple: dict[Any, tuple[type[Any] | tuple[type[Any], ...], str]] = {
        bool: (bool, "true or false"),
        str: (str, "a text"),
        type(None): (type(None), "null"),
        list: (list, "a list"),
        tuple: (list, "a list"),
        dict: (dict, "an object with fields"),
    }
    if typing.is_typeddict(origin):
        origin = dict
    if origin not in simple:
        return ""
    is_kind, words = simple[origin]
    return None if isinstance(value, is_kind) else words
