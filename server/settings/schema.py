"""The table of settings as a model of pydantic. This module imports pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from .table import MODEL_KEYS, SETTINGS, Setting


def make_schema(base: type[BaseSettings]) -> type[BaseSettings]:
    """Makes the class whose fields are the settings. `base` says where pydantic-settings looks for values."""

    class Model(BaseModel):
        model_config = ConfigDict(extra="forbid")

    class Server(base):
        model_config = SettingsConfigDict(extra="forbid", validate_default=False, protected_namespaces=())

    keys = {name: _field(setting, is_required=name == "path") for name, setting in MODEL_KEYS.items()}
    model = create_model("ModelKeys", __base__=Model, **keys)
    fields: dict[str, Any] = {setting.name: _field(setting) for setting in SETTINGS}
    fields["models"] = (Mapping[str, model], Field(default_factory=dict))
    return create_model("ServerKeys", __base__=Server, **fields)


def _field(setting: Setting, *, is_required: bool = False) -> Any:
    checked = Annotated[Any, BeforeValidator(setting.read)]
    return (checked, Field(... if is_required else setting.default, description=setting.description))
