"""Checks the values of a request against their declared types, before the client sends the request.

This module reads the annotations of `parameters` and `request`; it knows no option by name. The server checks what a
value means, and whether a model can do it.
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

from .errors import invalid_argument


def check_names(names: Collection[str], known: Collection[str], description: str) -> None:
    """Raises InvalidArgumentError for the first name that is not known. `description` is for the message."""
    for name in names:
        if name not in known:
            suggestions = difflib.get_close_matches(name, known, 1)
            raise invalid_argument(
                name, f"is no {description}" + (f"; did you mean {suggestions[0]}?" if suggestions else "")
            )


def check_options(options: Mapping[str, Any], options_type: type, description: str) -> None:
    """Raises InvalidArgumentError for an option that the TypedDict `options_type` does not have, or of another type."""
    hints = _declared_types(options_type)
    check_names(options, hints, description)
    for name, value in options.items():
        check_value(value, hints[name], name)


def check_fields(value: Any, field: str, paths: Mapping[str, str] | None = None) -> None:
    """Raises InvalidArgumentError for an attribute of a dataclass that is not of its declared type.

    Args:
        value: An instance of a dataclass.
        field: The path of the instance in the request.
        paths: For attributes that have another name in the contract: their paths below `field`.
    """
    hints = _declared_types(type(value))
    for attribute in dataclasses.fields(value):
        path = (paths or {}).get(attribute.name, attribute.name)
        check_value(getattr(value, attribute.name), hints[attribute.name], f"{field}.{path}")


def check_value(value: object, hint: Any, field: str) -> None:
    """Raises InvalidArgumentError for this field if the value is not of the type of the annotation `hint`."""
    if problem := find_problem(value, hint):
        raise invalid_argument(field, problem)


def find_problem(value: object, hint: Any) -> str:
    """Describes why a value is not of a type, such as "must be text, not 5". Empty if the value is of the type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _union_problem(value, arguments)
    if origin is Literal:
        if isinstance(value, str) and value in arguments:
            return ""
        return f"{_describe_value(value)} is none of {', '.join(map(str, arguments))}"
    if origin is tuple:
        return _tuple_problem(value, arguments)
    if origin is np.ndarray:
        return "" if isinstance(value, np.ndarray) else f"must be an array, not {_describe_value(value)}"
    if origin is not None and issubclass(origin, Sequence):
        return _sequence_problem(value, arguments[0])
    if hint is Any or _is_instance(value, hint):
        return ""
    return f"must be {_type_name(hint)}, not {_describe_value(value)}"


def is_sequence(value: object) -> bool:
    """Whether a value has ordered items: true for lists, tuples and arrays; false for text, bytes and mappings."""
    if isinstance(value, type | str | bytes | bytearray | memoryview | Mapping):
        return False
    # An array without axes has `__len__`, but raises when it is called.
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and getattr(value, "shape", (0,)) != ()


# ---- types ----------------------------------------------------------------------------------------------------------


@functools.cache
def _declared_types(options_type: type) -> Mapping[str, Any]:
    return get_type_hints(options_type)


def _union_problem(value: object, options: tuple[Any, ...]) -> str:
    if value is None and type(None) in options:
        return ""
    options = tuple(option for option in options if option is not type(None))
    problems = [find_problem(value, option) for option in options]
    if not all(problems):
        return ""
    if len(problems) == 1:
        return problems[0]
    item_problems = [problem for problem in problems if problem.startswith("[")]
    if item_problems:  # the value is a sequence as one of the options is; an item of the value is wrong
        return item_problems[0]
    names = [_type_name(option) for option in options]
    return f"must be {', '.join(names[:-1])} or {names[-1]}, not {_describe_value(value)}"


def _tuple_problem(value: object, hints: tuple[Any, ...]) -> str:
    if not is_sequence(value) or len(items := list(cast("Sequence[object]", value))) != len(hints):
        return f"must be {len(hints)} values, not {_describe_value(value)}"
    return _first_problem(zip(items, hints, strict=True))


def _sequence_problem(value: object, hint: Any) -> str:
    if not is_sequence(value):
        return f"must be a sequence, not {_describe_value(value)}"
    if isinstance(value, np.ndarray) and value.ndim == 1 and hint is int and np.issubdtype(value.dtype, np.integer):
        return ""
    return _first_problem((item, hint) for item in cast("Sequence[object]", value))


def _first_problem(items: Any) -> str:
    for index, (item, hint) in enumerate(items):
        if problem := find_problem(item, hint):
            return f"[{index}] {problem}"
    return ""


def _is_whole_number(value: object) -> bool:
    if type(value) is int:
        return True
    if isinstance(value, bool | np.bool_):  # a bool is an int in Python, but a user's True for a number is a mistake
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


def _is_instance(value: object, hint: Any) -> bool:
    return _TYPES[hint][1](value) if hint in _TYPES else isinstance(value, get_origin(hint) or hint)


def _type_name(hint: Any) -> str:
    if hint in _TYPES:
        return _TYPES[hint][0]
    origin = get_origin(hint)
    if origin in (dict, np.ndarray):
        return "a dictionary" if origin is dict else "an array"
    if origin is not None:
        return f"{len(get_args(hint))} values" if origin is tuple else "a sequence"
    return ("an " if hint.__name__[0] in "AEIOU" else "a ") + hint.__name__


def _describe_value(value: object) -> str:
    """Describes a value in a few characters, for a message. For a value of a complex type, it names only the type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | bool | int | float):
        with contextlib.suppress(ValueError):  # Python refuses to write a number of more than 4,300 digits
            return reprlib.repr(value)
    return f"a value of type {type(value).__name__}"
