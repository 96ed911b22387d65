"""Refuses fields of a model's JSON files that name code, unknown classes, or files outside the model's folder.

transformers would run some of this code only if a program allowed it. A file that asks for it is refused all the same,
as the model is not what its own class makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

from .fields import wrong_field
from .folder import CheckpointError, Part, has_file, read_object, walk

# The files with settings of a model, its tokenizer and its processors; transformers reads some of them by itself.
_CONFIGS = re.compile(r"config\.json$|^special_tokens_map\.json$")
_TOKENIZER_CONFIGS = ("tokenizer_config.json", "special_tokens_map.json")

# Fields that name code of the model's author, which transformers would import.
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code")

# Fields that name a function of transformers, or as `owner/name` code on the Hugging Face hub. For the names of flash
# attention and of some functions of experts, transformers fetches code from the hub where the package `kernels` is
# installed. These functions need no other package, and the server captures attention by functions of its own anyway.
_FUNCTIONS = re.compile(r"^_?(attn|experts)_implementation(_internal)?$")
_OWN_FUNCTIONS = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")

_NAMES = ", ".join(_OWN_FUNCTIONS)

# Fields that name a file or a folder, and fields of these names that no tokenizer opens.
_PATHS = re.compile(r"(^|_)(files?|paths?|dirs?|folders?|dic)$")
_UNREAD_PATHS = ("name_or_path", "special_tokens_map_file")
# Arguments of a tokenizer's class by their places, and options of the command line of a library.
_ARGUMENTS = ("init_inputs", "mecab_option")


def check_unsafe_fields(folder: Path) -> None:
    """Raises CheckpointError that names the file and the field if a file of settings has a field that is not safe."""
    for path in sorted(folder.iterdir()):
        if not _CONFIGS.search(path.name) or not has_file(folder, path.name):
            continue
        fields = read_object(folder, path.name)
        for part in walk(fields):
            _check_code(path.name, part)
            if path.name in _TOKENIZER_CONFIGS:
                _check_path(path.name, part)
        check_classes(path.name, fields)


def _check_code(file: str, part: Part) -> None:
    if part.name in _CODE and part.value:
        raise CheckpointError(f"{file}: {part.path} asks for code of its own, and only transformers' code runs here")
    if _FUNCTIONS.match(part.name):
        texts = [inner.value for inner in walk({part.name: part.value})]
        if any(isinstance(text, str) and text.removeprefix("paged|") not in _OWN_FUNCTIONS for text in texts):
            raise wrong_field(file, part.path, part.value, f"the name of a function of transformers: {_NAMES}")


def _check_path(file: str, part: Part) -> None:
    if part.name in _ARGUMENTS and part.value:
        raise CheckpointError(f"{file}: {part.path} must be absent or empty")
    if not _PATHS.search(part.field) or part.field in _UNREAD_PATHS or not isinstance(part.value, str):
        return
    if not re.fullmatch(r"[^/\\:]*", part.value) or part.value in (".", ".."):
        raise wrong_field(file, part.path, part.value, "the name of a file in the model's folder")


def check_classes(file: str, fields: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a file names a class that transformers does not have, or a class of another kind."""
    architectures: Any = fields.get("architectures") or []
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if not _is_class(getattr(transformers, name, None) if isinstance(name, str) else None, PreTrainedModel):
            raise wrong_field(file, "architectures", fields["architectures"], "a list of transformers' models")
    name: Any = fields.get("tokenizer_class")
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"{file}: tokenizer_class must be a text")
    if name is None:
        return
    stem = name.removesuffix("Fast")
    if not any(
        _is_class(tokenizer_class_from_name(form), PreTrainedTokenizerBase) for form in (name, stem, f"{stem}Fast")
    ):
        raise wrong_field(file, "tokenizer_class", name, "a tokenizer of transformers")


def _is_class(value: object, base: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, base)
