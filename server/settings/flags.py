"""The options of the command line, made of the table of settings."""

from __future__ import annotations

import argparse
from typing import Any

from .table import MODEL_KEYS, SETTINGS, Setting

# The options in groups, as the help shows them. What no group names is a limit.
_GROUPS = {
    "which model": ("name", "device", "dtype", "threads", "compile", "offline"),
    "who can connect": (
        *("address", "tls_cert", "tls_key", "tls_client_ca"),
        *("tokens", "unix_mode", "insecure", "reflection", "frontends"),
    ),
    "what operators see": ("log_level", "log_format", "log_texts", "metrics_address"),
    "stopping, and steps that hang": ("grace", "step_timeout"),
}
_LIMITS = "limits"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each setting. The namespace has an attribute only for an option that is given."""
    parser.add_argument(
        "--config", metavar="FILE", default=None, help="a TOML file with settings, which flags and environment override"
    )
    groups = {title: parser.add_argument_group(title) for title in (*_GROUPS, _LIMITS)}
    for setting in SETTINGS:
        title = next((title for title, names in _GROUPS.items() if setting.name in names), _LIMITS)
        if setting.has_flag:
            _add_flag(parser if setting.is_positional else groups[title], setting)
    groups["which model"].add_argument(
        "--model",
        dest="models",
        action="append",
        type=_read_model,
        default=argparse.SUPPRESS,
        metavar="NAME=PATH[,KEY=VALUE...]",
        help="a further model with settings of its own, such as de=./opus,dtype=int8,max-slots=8; may be repeated",
    )


def _add_flag(parser: argparse._ActionsContainer, setting: Setting) -> None:
    if setting.kind is bool:
        parser.add_argument(
            setting.flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=_describe(setting)
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
    parser.add_argument(name, nargs=number, default=argparse.SUPPRESS, help=_describe(setting), **details)


def _describe(setting: Setting) -> str:
    """Returns a description with the default. The unit of the default is that of the description."""
    if setting.default is None or setting.default is False:
        return setting.description
    default = f"{setting.default:g}" if setting.kind is float else str(setting.default)
    unit = " seconds" if setting.metavar == "SECONDS" else ""
    return f"{setting.description}; default {default}{unit}"


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
