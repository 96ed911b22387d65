"""The messages of the page, read as options of the client. The client checks the types, and the server what they mean.

Fields are named as the page names them, which is how the contract names them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..alignments import LinkOptions, Markup
from ..errors import invalid_argument
from ..follow.request import FollowOptions
from ..parameters import AlignAtt, Capture, Decoding
from ..request import AlignOptions, AttributeOptions

# The longest time of a stream, in seconds.
TIMEOUT = 600.0

_COMMON = ("model", "source_language", "target_language")
_CAPTURE = ("row", "method", "special_tokens")
_TASKS: dict[str, frozenset[str]] = {
    "attribute": frozenset({"task", "source", "target", "kind", "preset", "links", *_COMMON, *_CAPTURE}),
    "align": frozenset({"task", "source", "target", "markup", *_COMMON}),
    "follow": frozenset({"task", "words", "kind", "preset", *_COMMON, *_CAPTURE}),
}


def read_message(text: str) -> dict[str, Any]:
    """Reads a message of the page: an object. Raises InvalidArgumentError."""
    try:
        message: Any = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise invalid_argument("message", "must be a JSON object")
    return message  # pyright: ignore[reportUnknownVariableType]


def read_start(text: str) -> dict[str, Any]:
    """Reads the first message of a stream. Raises InvalidArgumentError for an unknown task, or an unknown field."""
    message = read_message(text)
    task = message.get("task")
    if not isinstance(task, str) or task not in _TASKS:
        raise invalid_argument("task", f"must be one of {', '.join(_TASKS)}")
    for name in message:
        if name not in _TASKS[task]:
            raise invalid_argument(name[:80], "is no field of this task")
    return message


def build_attribute_options(message: Mapping[str, Any]) -> AttributeOptions:
    """Returns the options of `attribute`. Heads stay apart, so that the page can show each."""
    options: AttributeOptions = {
        "capture": _build_capture(message),
        "scores": ["probability"],
        "offset_unit": "utf16",  # as JavaScript counts
        "timeout": TIMEOUT,
    }
    _add_common(options, message)
    if (target := message.get("target")) is not None:
        options["target"] = target
    if message.get("links"):
        options["link_options"] = LinkOptions()
    return options


def build_align_options(message: Mapping[str, Any]) -> AlignOptions:
    """Returns the options of `align`."""
    options: AlignOptions = {"offset_unit": "utf16", "timeout": TIMEOUT}
    _add_common(options, message)
    if (markup := message.get("markup")) is not None:
        options["markup"] = Markup(markup)
    return options


def build_follow_options(message: Mapping[str, Any]) -> FollowOptions:
    """Returns the options of `follow`, where the server writes the target as far as AlignAtt allows."""
    options: FollowOptions = {
        "policy": AlignAtt(words=message.get("words", 2)),
        "decoding": Decoding(),
        "capture": _build_capture(message),
        "scores": ["probability"],
        "offset_unit": "utf16",
        "timeout": TIMEOUT,
    }
    _add_common(options, message)
    return options


def _build_capture(message: Mapping[str, Any]) -> Capture:
    kind = message.get("kind")
    if kind == "none":
        return Capture(none=True)
    preset = message.get("preset") or None
    if preset is not None and not isinstance(preset, str):
        raise invalid_argument("preset", "must be the name of a preset")
    return Capture(
        kinds=() if kind is None else (kind,),
        heads=preset,
        row=message.get("row") or None,
        method=message.get("method") or "weights",
        special_tokens=message.get("special_tokens") or None,
    )


def _add_common(options: Any, message: Mapping[str, Any]) -> None:
    options.update({name: message[name] for name in _COMMON if message.get(name)})
