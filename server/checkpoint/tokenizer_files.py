"""A model's tokenizer from its files, and which of the files is to blame where it cannot be made.

The tokenizers' own libraries say of a damaged file what went wrong in their code. Knows files; what tokens are is in
`text.tokenizer`.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import transformers
from transformers import AutoTokenizer, PreTrainedConfig

from .fields import deadline, field_to_blame, plain_words, wrong_field
from .files import (
    CONFIG,
    Checkpoint,
    CheckpointError,
    check_file,
    has_file,
    read_object,
    read_text,
)
from .weights import silent

_CONFIG = "tokenizer_config.json"
# Small, and read by every tokenizer where they are there. What is wrong with some of them is ignored in silence.
_COMMON = (_CONFIG, "special_tokens_map.json", "added_tokens.json")
_WHOLE = "tokenizer.json"  # the tokenizers library's, which checks it
_TEMPLATE = "chat_template.jinja"

# Bytes of a vocabulary below which it is looked at before anything is made of it.
_SMALL = 1000

# So many of the first tokens must have some text together.
_TRIED = 1000

# Fields of tokenizer.json that must be there.
_TOKENIZER_FIELDS: dict[str, tuple[type, str]] = {
    "added_tokens": (list, "a list"),
    "model": (dict, "an object with fields"),
}

# Fields of a tokenizer's class that are no files of its vocabulary, or need not be there.
_OTHER_FILES = {"tokenizer_config_file", "target_vocab_file"}

# Fields of a tokenizer's class for files that say the number of each token. Other files have words, sounds or signs.
_VOCABULARIES = {"vocab_file", "vocab", "src_vocab_file", "tgt_vocab_file"}


def load_tokenizer(checkpoint: Checkpoint, config: PreTrainedConfig) -> Any:
    """Makes the tokenizer of a model. Raises CheckpointError that names the file to blame."""
    folder = checkpoint.folder
    for name in _COMMON:
        fields = read_object(folder, name) if has_file(folder, name) else {}
        if not isinstance(fields.get("tokenizer_class", ""), (str, type(None))):
            raise CheckpointError(f"{name}: tokenizer_class must be a text")
    if has_file(folder, _TEMPLATE):
        read_text(folder, _TEMPLATE)
    for name, field in _files_of(checkpoint, config).items():
        # Some take whatever they find for a vocabulary.
        if has_file(folder, name) and name.endswith(".json") and name != _WHOLE:
            _check_vocabulary(folder, name, field)
        elif has_file(folder, name):
            is_small = check_file(folder, name).stat().st_size < _SMALL
            if name == _WHOLE and is_small and not read_object(folder, name):
                raise CheckpointError(f"{name} has no tokens")
    try:
        return _make(checkpoint.name, checkpoint.revision)
    except Exception as error:  # whatever a damaged file makes a tokenizer raise
        raise tokenizer_error(checkpoint, config, error) from error


def _make(name: str, revision: str = "main") -> Any:
    """The tokenizer of a folder or an id on the hub."""
    with silent():
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    ids = list(range(min(tokenizer.vocab_size, _TRIED)))
    if not tokenizer.decode(ids, skip_special_tokens=True).strip():  # what some make of files that are not there
        raise ValueError("none of its tokens has a text")
    return tokenizer


def tokenizer_error(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    error: Exception,
    use: Callable[[Any], object] = lambda _: None,
) -> CheckpointError:
    """Why a tokenizer cannot be made or used: names the damaged or missing file, and the field, where they are known.

    `use` is what it was made for: it raises where that fails.
    """
    folder, names = checkpoint.folder, _files_of(checkpoint, config)
    present = [name for name in names if has_file(folder, name)]
    try:
        for name in present:
            _check_vocabulary(folder, name, names[name])
    except CheckpointError as damaged:
        return damaged
    missing = [name for name in names if name not in present]
    if missing and (not present or (len(present) + len(missing) > 1 and _WHOLE not in present)):
        verb, it = ("is", "it") if len(missing) == 1 else ("are", "them")
        return CheckpointError(f"{', '.join(missing)} {verb} missing, and the tokenizer cannot be made without {it}")
    why, end = plain_words(error), deadline()
    for name in dict.fromkeys((*_COMMON, _WHOLE, CONFIG)):
        if not has_file(folder, name):
            continue
        fields = read_object(folder, name)
        field = field_to_blame(fields, error, functools.partial(_failure, folder, name, use), end)
        if field is not None:
            return wrong_field(name, field, fields[field], why=why)
    shown = ", ".join([name for name in (_CONFIG, *present) if has_file(folder, name)])
    return CheckpointError(f"{shown}: no tokenizer can be made of what is there{why and f': {why}'}")


def _failure(folder: Path, name: str, use: Callable[[Any], object], fields: Mapping[str, Any]) -> Exception | None:
    """What is raised while a tokenizer is made and used with other fields in one of its files."""
    with tempfile.TemporaryDirectory() as copied:
        for path in folder.iterdir():
            if path.name != name:
                (Path(copied) / path.name).symlink_to(path.resolve())
        (Path(copied) / name).write_text(json.dumps(fields), encoding="utf-8")
        try:
            use(_make(copied))
        except Exception as error:  # as in `load_tokenizer`
            return error
    return None


def _files_of(checkpoint: Checkpoint, config: PreTrainedConfig) -> dict[str, str]:
    """The files of the vocabulary of a model's tokenizer, each with the field of the tokenizer's class for it."""
    folder = checkpoint.folder
    name: Any = read_object(folder, _CONFIG).get("tokenizer_class") if has_file(folder, _CONFIG) else None
    found: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if found is None:
        try:
            found = transformers.TOKENIZER_MAPPING[type(config)]
        except KeyError:
            found = transformers.PreTrainedTokenizerFast
    found = found[-1] if isinstance(found, tuple) else found
    files: dict[str, str] = getattr(found, "vocab_files_names", {})
    return {file: field for field, file in files.items() if field not in _OTHER_FILES}


def _check_vocabulary(folder: Path, name: str, field: str) -> None:
    """Raises CheckpointError where a file of a vocabulary is damaged."""
    if name.endswith((".model", ".spm")):
        try:
            sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{name} is not a model of SentencePiece") from error
    elif not name.endswith(".json"):
        read_text(folder, name, may_be_empty=True)
    elif name == _WHOLE:
        fields = read_object(folder, name)
        for needed, (kind, words) in _TOKENIZER_FIELDS.items():
            if not isinstance(fields.get(needed), kind):
                raise wrong_field(name, needed, fields.get(needed), words)
        if "vocab" not in fields["model"]:
            raise wrong_field(name, "model", fields["model"], "an object with a field vocab")
    else:
        tokens = read_object(folder, name)
        if field not in _VOCABULARIES:
            return
        if not tokens:
            raise CheckpointError(f"{name} has no tokens")
        for token, id_ in tokens.items():
            if not isinstance(id_, int) or isinstance(id_, bool):
                raise wrong_field(
                    name, f"the number of the token {json.dumps(token, ensure_ascii=False)[:60]}", id_, "a whole number"
                )
