"""The options of the command line, made of the table of settings."""

from __future__ import annotations

import argparse
from typing import Any

from .table import MODEL_KEYS, SETTINGS, Setting


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each setting. The namespace has an attribute only for an option that is given."""
    parser.add_argument(
        "--config", metavar="FILE", default=None, help="a TOML file with settings, which flags and environment override"
    )
    for setting in SETTINGS:
        if setting.has_flag:
            _add_flag(parser, setting)
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        type=_read_model,
        default=argparse.SUPPRESS,
        metavar="NAME=PATH[,KEY=VALUE...]",
        help="a further model with settings of its own, such as de=./opus,dtype=int8,max-slots=8; may be repeated",
    )


def _add_flag(parser: argparse.ArgumentParser, setting: Setting) -> None:
    if setting.kind is bool:
        parser.add_argument(
            setting.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=setting.description
        )
        return

    def read(text: str) -> Any:
        try:
            return setting.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    # argparse names the choices itself.
    details: dict[str, Any] = {"choices": setting.choices} if setting.choices else {"type": read}
    if setting.metavar:
        details["metavar"] = setting.metavar
    name, number = (setting.name, "?") if setting.is_positional else (setting.flag, None)
    parser.add_argument(name, nargs=number, default=argparse.SUPPRESS, help=setting.description, **details)


def _read_model(text: str) -> tuple[str, dict[str, str]]:
    """Returns the name of a model and its settings, of NAME=PATH,KEY=VALUE."""
    first, *others = text.split(",")
    name, _, path = first.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError("must be NAME=PATH, then ,KEY=VALUE for each setting of the model")
    values = {"path": path}
    for other in others:
        key, sign, value = other.partition("=")
        key = key.replace("-", "_")
        if not sign or key not in MODEL_KEYS or key in values:
            known = ", ".join(known.replace("_", "-") for known in MODEL_KEYS if known != "path")
            raise argparse.ArgumentTypeError(f"{other!r} must be KEY=VALUE, each KEY once, of {known}")
        try:
            MODEL_KEYS[key].read(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{key.replace('_', '-')} of {name} {error}") from error
        values[key] = value
    return name, values
