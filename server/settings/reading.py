"""Reads the settings: which value holds, and where each value comes from.

pydantic-settings looks into the sources and merges what they have. `Setting.read` checks each value. pydantic takes 0.2
seconds to import, so only `read_settings` imports it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from .table import BY_NAME, CLIENT_VARIABLES, MODEL_KEYS, SETTINGS

_PREFIX = "SIDELIGHT_"
_CONFIG = f"{_PREFIX}CONFIG"
_MODELS = f"{_PREFIX}MODELS"

# How many characters of a wrong value an error quotes.
_MAX_QUOTED = 60


class SettingsError(Exception):
    """A setting is wrong. The message names the setting and its source, in one line for people."""


@dataclass(frozen=True)
class ModelSettings:
    """The settings of one model.

    Attributes:
        name: What requests call the model; None: by its path.
        path: A directory or an id on the Hugging Face hub; None: the bundled model.
        values: An attribute for each setting that models may differ in.
    """

    name: str | None
    path: str | None
    values: SimpleNamespace


@dataclass(frozen=True)
class Settings:
    """What holds.

    Attributes:
        values: An attribute for each setting.
        models: The models, the default one first.
        named: The settings of each further model, as far as they are given.
        origins: Where a value comes from, by the path of its key: a setting's name, or models, NAME and key.
    """

    values: SimpleNamespace
    models: tuple[ModelSettings, ...]
    named: Mapping[str, Mapping[str, Any]]
    origins: Mapping[tuple[str, ...], str]


def read_settings(args: argparse.Namespace) -> Settings:
    """Reads what flags, environment, file and defaults say. Raises SettingsError."""
    from pydantic import ValidationError
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        PydanticBaseSettingsSource,
        TomlConfigSettingsSource,
    )
    from pydantic_settings.exceptions import SettingsError as SourceError

    from .schema import make_schema

    given = {name: value for name, value in vars(args).items() if name in BY_NAME}
    if models := getattr(args, "models", ()):
        given["models"] = _merge_models(models)
    file = args.config or os.environ.get(_CONFIG)
    _check_variables()
    sources: list[PydanticBaseSettingsSource] = []

    class Sources(BaseSettings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **_others: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources[:] = [
                InitSettingsSource(settings_cls, init_kwargs=given),
                EnvSettingsSource(settings_cls, env_prefix=_PREFIX),
                *([TomlConfigSettingsSource(settings_cls, toml_file=file)] if file else []),
            ]
            return tuple(sources)

    if file:
        _check_file(file)
    try:
        values: Any = make_schema(Sources)()
    except SourceError as error:
        raise SettingsError(f"models must be an object in JSON (environment {_MODELS})") from error
    except ValidationError as error:
        raise _wrong_value(error.errors()[0], _find_origins(sources, file)) from error
    origins = _find_origins(sources, file)
    holds = SimpleNamespace(**{setting.name: getattr(values, setting.name) for setting in SETTINGS})
    named = {name: model.model_dump(exclude_unset=True) for name, model in values.models.items()}
    return Settings(holds, _make_models(holds, named, origins), named, origins)


def _make_models(
    holds: SimpleNamespace, named: Mapping[str, Mapping[str, Any]], origins: Mapping[tuple[str, ...], str]
) -> tuple[ModelSettings, ...]:
    """Returns the models to serve. Without MODEL and without named models: the bundled model."""
    shared = {setting.name: getattr(holds, setting.name) for setting in SETTINGS if setting.is_of_model}
    models: list[ModelSettings] = []
    if holds.model is not None or not named:
        models.append(ModelSettings(holds.name, holds.model, SimpleNamespace(**shared)))
    elif holds.name is not None:
        raise SettingsError(f"name is for the model that MODEL gives, and no MODEL is given ({origins[('name',)]})")
    for name, given in named.items():
        if name in ("", holds.name):
            raise SettingsError(f"models.{name}: the name must be there, and no other model may have it")
        values = shared | {key: value for key, value in given.items() if key != "path"}
        models.append(ModelSettings(name, given["path"], SimpleNamespace(**values)))
    return tuple(models)


def _merge_models(models: list[tuple[str, dict[str, str]]]) -> dict[str, dict[str, str]]:
    merged: dict[str, dict[str, str]] = {}
    for name, values in models:
        if name in merged:
            raise SettingsError(f"models.{name} is given twice (flag --model)")
        merged[name] = values
    return merged


def _check_variables() -> None:
    """Refuses variables of Sidelight that nothing reads."""
    known = {setting.variable for setting in SETTINGS} | CLIENT_VARIABLES | {_CONFIG, _MODELS}
    for name in sorted(os.environ):
        if name.upper().startswith(_PREFIX) and name.upper() not in known:
            raise SettingsError(f"environment {name} is no setting{_hint(name.upper(), known)}")


def _check_file(file: str) -> None:
    """Refuses a file that cannot be read, or is not TOML. pydantic-settings would take a missing file as an empty one.

    Raises SettingsError.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

    try:
        with open(file, "rb") as stream:
            tomllib.load(stream)
    except OSError as error:
        raise SettingsError(f"file {file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SettingsError(f"file {file} is not TOML: {str(error).splitlines()[0]}") from error


def _find_origins(sources: list[Any], file: str | None) -> dict[tuple[str, ...], str]:
    """Returns where the value of each key comes from, for each key that a source has."""
    origins: dict[tuple[str, ...], str] = {}
    for source, kind in zip(sources, ("flag", "environment", "file"), strict=False):
        for name, value in source().items():
            keys = [(name,)]
            if name == "models" and isinstance(value, dict):
                tables = [(name, model, table) for model, table in value.items()]
                keys = [path[:2] for path in tables]
                keys += [(*path[:2], key) for path in tables if isinstance(path[2], dict) for key in path[2]]
            for key in keys:
                origins.setdefault(key, _describe_origin(kind, key, file))
    return origins


def _describe_origin(kind: str, key: tuple[str, ...], file: str | None) -> str:
    if kind == "file":
        return f"file {file}:{'.'.join(key)}"
    if key[0] == "models":
        return "flag --model" if kind == "flag" else f"environment {_MODELS}"
    return f"flag {BY_NAME[key[0]].flag}" if kind == "flag" else f"environment {BY_NAME[key[0]].variable}"


def _wrong_value(error: Any, origins: Mapping[tuple[str, ...], str]) -> SettingsError:
    """Returns the error for the first value that pydantic refuses."""
    path: tuple[str, ...] = tuple(map(str, error["loc"]))
    origin = next((origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), "default")
    where = f"({origin})"
    name = ".".join(path)
    table = MODEL_KEYS if path[0] == "models" else BY_NAME
    if error["type"] == "extra_forbidden":
        return SettingsError(f"{name} is no setting{_hint(path[-1], table)} {where}")
    if error["type"] == "missing":
        return SettingsError(f"{name} is missing {where}")
    setting = table.get(path[-1]) if path[0] != "models" or len(path) == 3 else None
    quoted = json.dumps(error["input"], ensure_ascii=False, default=str)
    quoted = quoted if len(quoted) <= _MAX_QUOTED else f"{quoted[:_MAX_QUOTED]}..."
    requirement = setting.requirement if setting is not None else "a table with keys"
    return SettingsError(f"{name} must be {requirement}, not {quoted} {where}")


def _hint(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; the nearest one is {close[0]}" if close else ""
