"""Which field of a model's file is to blame for an error, in the words of the file, not of a library.

To find the field, the caller makes the model or the tokenizer again, without one field after another.
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

from .folder import CheckpointError

# Seconds after which no other field is tried, for all files of a model together.
_MAX_SEARCH_SECONDS = 10.0

# A number that no model has as its number of layers, its width or its vocabulary.
_ABSURD = 10**6

# The folder of the model families' code.
_LIBRARY = str(Path(transformers.__file__).parent)

# Numbers that go together with many other numbers, as a model's widths and heads must.
_REPLACEMENTS = (1, 64)

# How many characters of a value, and of a library's message, an error message quotes.
_MAX_VALUE, _MAX_REASON = 60, 200

# What only a text for programmers contains: words of Python, names of classes and functions.
_CODE = re.compile(
    r"error|exception|traceback|object|class\b|None|True|False|__|[a-z_]\.[a-z_]|\w\(\)|torch|"
    r"\b(str|dict|tuple|int|bool|float|list)\b|instance|argument|tensor|power|_idx|\bhub\b|/",
    re.IGNORECASE,
)
_NAMES = re.compile(r"[a-z][A-Z]|[A-Z][a-z]+[A-Z]")
# What huggingface_hub puts before the reason of a configuration's own checks.
_VALIDATOR = re.compile(r"^Class validation error for validator '\w+': ValueError: ")


def wrong_field(file: str, name: str, value: object, must_be: str | None = None, why: str = "") -> CheckpointError:
    """Returns the error for a field with a wrong value. `must_be` says which values are right."""
    quoted = json.dumps(value, ensure_ascii=False, default=lambda _: "...")
    quoted = quoted if len(quoted) <= _MAX_VALUE else f"{quoted[:_MAX_VALUE]}..."
    problem = f"cannot be {quoted}" if must_be is None else f"must be {must_be}, not {quoted}"
    return CheckpointError(f"{file}: {name} {problem}{why and f': {why}'}")


def deadline() -> float:
    """Returns the time at which a search for the field to blame must end if it begins now, by the monotonic clock."""
    return time.monotonic() + _MAX_SEARCH_SECONDS


def field_to_blame(
    fields: Mapping[str, Any],
    error: Exception,
    failure: Callable[[Mapping[str, Any]], Exception | None],
    end: float,
) -> str | None:
    """Returns the field that causes an error; None if no field is found.

    A field is to blame if a trial works without it, or with another number or an empty list in it.

    Args:
        fields: The fields of the file.
        error: The error that the model or the tokenizer raised.
        failure: Runs a trial with other fields. Returns what the trial raises, or None. A trial with the fields as they
            are must raise the same error: otherwise no field is to blame.
        end: No trial begins after this time.
    """
    try:
        if time.monotonic() > end or not _is_same(failure(fields), error):  # the trial does not show the error
            return None
        for name, changed in _changes(fields):
            if time.monotonic() > end:
                break
            if failure(changed) is None:
                return name
    except RecursionError:
        pass
    return None


def _is_same(trial_error: Exception | None, error: Exception) -> bool:
    """Whether a trial fails like the model: with the same message, or in the same line of a model family's code.

    Numbers in a message differ by the lengths of the inputs. The whole message differs by the device.
    """
    if trial_error is None or type(trial_error) is not type(error):
        return False
    place = _place(error)
    return str(trial_error) == str(error) or (place is not None and place == _place(trial_error))


def _place(error: Exception) -> tuple[str, int | None] | None:
    """Returns the innermost line of transformers that raised an error or passed it on."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next(((frame.filename, frame.lineno) for frame in frames if frame.filename.startswith(_LIBRARY)), None)


def _changes(fields: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the fields with one field changed, and the name of that field. Odd values come first."""
    names = sorted(fields, key=lambda name: not _is_odd(fields[name]))
    for name in names:
        yield name, {other: value for other, value in fields.items() if other != name}
    for number, name in itertools.product(_REPLACEMENTS, names):  # the default of a missing field may be wrong too
        if isinstance(fields[name], int) and not isinstance(fields[name], bool):
            yield name, {**fields, name: number}
    for name in names:  # some lists must be there
        if isinstance(fields[name], list):
            yield name, {**fields, name: []}


def _is_odd(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < _ABSURD


def plain_words(error: BaseException) -> str:
    """Returns what a library says about a value if people can read it; otherwise an empty text."""
    line = _VALIDATOR.sub("", " ".join(str(error).split())).rstrip(".")
    if not isinstance(error, ValueError) and not str(error).startswith("Class validation error"):
        return ""
    return "" if len(line) > _MAX_REASON or _CODE.search(line) or _NAMES.search(line) else line


def declared_types(cls: type) -> Mapping[str, Any]:
    """Returns the types that a class declares for its fields; empty if they cannot be found."""
    try:
        return typing.get_type_hints(cls, localns={"torch": torch})
    except Exception:  # a type may use a name that only type checkers know
        return {}


def words_of_type(declared: Any, value: object) -> str | None:
    """Returns what a field of a declared type must be; None if the value is right, or if the type does not say."""
    words: list[str] = []
    kinds = _kinds(declared)
    for kind in kinds:
        kind_words = _words(kind, value, takes_int=int in kinds)
        if kind_words is None:  # the value is of this type
            return None
        words += [kind_words] * (bool(kind_words) and kind_words not in words)
    if int in kinds and float in kinds:
        words.remove("a whole number")
    return " or ".join(filter(None, [", ".join(words[:-1]), *words[-1:]])) or None


def _kinds(declared: Any) -> list[Any]:
    if typing.get_origin(declared) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(declared) for kind in _kinds(member)]
    return [declared]


def _words(kind: Any, value: object, *, takes_int: bool) -> str | None:
    """Returns the words for one type, empty if there are none; None if the value is of this type."""
    origin = typing.get_origin(kind) or kind
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if origin is Literal:
        options = typing.get_args(kind)
        return None if value in options else " or ".join(json.dumps(option) for option in options)
    if origin is int:
        return None if is_number and isinstance(value, int) else "a whole number"
    if origin is float:
        if is_number and isinstance(value, int) and not takes_int:
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
