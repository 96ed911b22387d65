"""Checks what is asked against what is declared: each value against its annotation, before anything is sent.

Knows annotations as `parameters` and `request` use them; knows no option by name. What a value means, and whether a
model can do it, is the server's to judge.
"""

# NumPy's stubs leave some members partly unknown.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import numbers
import operator
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from .errors import invalid


def check_names(names: Collection[str], known: Collection[str], what: str) -> None:
    """Raises InvalidArgumentError for the first name that is not known; `what` says what the names are."""
    for name in names:
        if name not in known:
            likely = difflib.get_close_matches(name, known, 1)
            raise invalid(name, f"is no {what}" + (f"; did you mean {likely[0]}?" if likely else ""))


def check_options(options: Mapping[str, Any], declared: type, what: str) -> None:
    """Raises InvalidArgumentError for an option that a TypedDict does not declare, or declares of another type."""
    hints = _hints_of(declared)
    check_names(options, hints, what)
    for name, value in options.items():
        check_value(value, hints[name], name)


def check_fields(value: Any, field: str, paths: Mapping[str, str] | None = None) -> None:
    """Raises InvalidArgumentError for a member of a dataclass that is not of its declared type.

    Args:
        value: An instance of a dataclass.
        field: Its own path in the request.
        paths: The contract's paths behind that, of members that it has another name for.
    """
    hints = _hints_of(type(value))
    for member in dataclasses.fields(value):
        path = (paths or {}).get(member.name, member.name)
        check_value(getattr(value, member.name), hints[member.name], f"{field}.{path}")


def check_value(value: object, hint: Any, field: str) -> None:
    """Raises InvalidArgumentError, with this field, for a value that is not of the type that a hint declares."""
    if problem := find_problem(value, hint):
        raise invalid(field, problem)


def find_problem(value: object, hint: Any) -> str:
    """What is wrong with a value for a type: a phrase such as "must be text, not 5"; empty if nothing is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union_problem(value, arguments)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return ""
        return f"{_describe(value)} is none of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return _tuple_problem(value, arguments)
    if origin is not None and issubclass(origin, Sequence):
        return _sequence_problem(value, arguments[0])
    if hint is Any or _is_a(value, hint):
        return ""
    return f"must be {_name(hint)}, not {_describe(value)}"


def is_sequence(value: object) -> bool:
    """Whether a value has items in an order: a list, a tuple or an array, but no text, bytes or mapping."""
    if isinstance(value, type | str | bytes | bytearray | memoryview | Mapping):
        return False
    # An array without axes has a length only by name.
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and getattr(value, "shape", (0,)) != ()


# ---- types ----------------------------------------------------------------------------------------------------------


@functools.cache
def _hints_of(declared: type) -> Mapping[str, Any]:
    return get_type_hints(declared)


def _union_problem(value: object, options: tuple[Any, ...]) -> str:
    if value is None and type(None) in options:
        return ""
    options = tuple(option for option in options if option is not type(None))
    problems = [find_problem(value, option) for option in options]
    if not all(problems):
        return ""
    if len(problems) == 1:
        return problems[0]
    within = [problem for problem in problems if problem.startswith("[")]
    if within:  # the value is of the right kind, one of its items is not
        return within[0]
    names = [_name(option) for option in options]
    return f"must be {', '.join(names[:-1])} or {names[-1]}, not {_describe(value)}"


def _tuple_problem(value: object, hints: tuple[Any, ...]) -> str:
    if not is_sequence(value) or len(items := list(cast("Sequence[object]", value))) != len(hints):
        return f"must be {len(hints)} values, not {_describe(value)}"
    return _first_problem(zip(items, hints, strict=True))


def _sequence_problem(value: object, hint: Any) -> str:
    if not is_sequence(value):
        return f"must be a sequence, not {_describe(value)}"
    if isinstance(value, np.ndarray) and value.ndim == 1 and hint is int and np.issubdtype(value.dtype, np.integer):
        return ""
    return _first_problem((item, hint) for item in cast("Sequence[object]", value))


def _first_problem(items: Any) -> str:
    for place, (item, hint) in enumerate(items):
        if problem := find_problem(item, hint):
            return f"[{place}] {problem}"
    return ""


def _is_whole_number(value: object) -> bool:
    if type(value) is int:
        return True
    if isinstance(value, bool | np.bool_):  # a bool is an int to Python, and a slip to people
        return False
    try:
        operator.index(cast("Any", value))
    except TypeError:
        return False
    return True


_TYPES: Mapping[Any, tuple[str, Callable[[object], bool]]] = {
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_whole_number),
    float: ("a number", lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)),
}


def _is_a(value: object, hint: Any) -> bool:
    return _TYPES[hint][1](value) if hint in _TYPES else isinstance(value, hint)


def _name(hint: Any) -> str:
    if hint in _TYPES:
        return _TYPES[hint][0]
    origin = get_origin(hint)
    if origin is not None:
        return f"{len(get_args(hint))} values" if origin is tuple else "a sequence"
    return ("an " if hint.__name__[0] in "AEIOU" else "a ") + hint.__name__


def _describe(value: object) -> str:
    """A value in a message, cut to a few characters; of what is no plain value, the type alone."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | bool | int | float):
        with contextlib.suppress(ValueError):  # Python writes no number of more than 4,300 digits
            return reprlib.repr(value)
    return f"a value of type {type(value).__name__}"
