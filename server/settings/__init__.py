"""The settings of a server: flags come before the environment, the environment before a TOML file, then defaults.

This package is quick to import: every run of the command line imports it, also where only the client is installed.

table      Setting, and all settings: name, type, default, description
flags      the options of the command line, made of the table
schema     the table as a model of pydantic
reading    read_settings: what holds, and where each value comes from; by pydantic-settings, imported when it is called
listing    what holds as a TOML file, for `sidelight config`

How to add a setting: add one `Setting` to SETTINGS in `table`, and one row to the table in server/README.md. The flag,
the variable, the key of the file, the help and `sidelight config` come from the entry in the table. The value is an
attribute of `Settings.values` with the name of the setting. A setting with `is_of_model` may differ between models, and
is an attribute of each `ModelSettings.values` too.
"""

from .flags import add_flags
from .listing import list_settings
from .reading import ModelSettings, Settings, SettingsError, read_settings
from .table import SETTINGS, Setting

__all__ = [
    "SETTINGS",
    "ModelSettings",
    "Setting",
    "Settings",
    "SettingsError",
    "add_flags",
    "list_settings",
    "read_settings",
]
