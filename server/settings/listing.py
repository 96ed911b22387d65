"""What holds as a TOML file, for `sidelight config`. Each line has a comment that says where its value comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from .reading import Settings
from .table import SETTINGS

# Keys that need no quotes.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def list_settings(settings: Settings) -> Iterator[str]:
    """Yields a TOML file, line by line. A server that gets this file has the same settings."""
    for setting in SETTINGS:
        value = getattr(settings.values, setting.name)
        origin = settings.origins.get((setting.name,), "default")
        yield f"# {setting.name} is not set  # {origin}" if value is None else _line(setting.name, value, origin)
    for name, values in settings.named.items():
        yield ""
        yield f"[models.{name if _BARE_KEY.fullmatch(name) else _text(name)}]"
        for key, value in values.items():
            yield _line(key, value, settings.origins["models", name, key])


def _line(key: str, value: object, origin: str) -> str:
    return f"{key} = {_text(value)}  # {origin}"


def _text(value: object) -> str:
    """Writes a value in TOML, whose texts, numbers and truth values are those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
