"""Makes a model's tokenizer of its files, and finds the file that is to blame if that fails.

For a damaged file, the tokenizers' own libraries say what went wrong in their code.
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
from .files import CONFIG, Checkpoint
from .folder import CheckpointError, check_file, has_file, read_object, read_text
from .weights import silence_transformers

_CONFIG = "tokenizer_config.json"
# Small files that every tokenizer reads if they exist. The libraries silently ignore what is wrong in some of them.
_COMMON = (_CONFIG, "special_tokens_map.json", "added_tokens.json")
_TOKENIZER = "tokenizer.json"  # the tokenizers library checks it
_TEMPLATE = "chat_template.jinja"

# A vocabulary of fewer bytes is read before anything is made of it.
_SMALL_BYTES = 1000

# How many of the first tokens must have some text together.
_NUM_TRIED = 1000

# The fields that tokenizer.json must have.
_TOKENIZER_FIELDS: dict[str, tuple[type, str]] = {
    "added_tokens": (list, "a list"),
    "model": (dict, "an object with fields"),
}

# The models of the tokenizers library, and fields for what is around the model.
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")
_TOKENIZER_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")

# Fields of a tokenizer's class for files that are no vocabulary, or that need not exist.
_OTHER_FILES = {"tokenizer_config_file", "target_vocab_file"}

# Fields of a tokenizer's class for files with the id of each token. Other files have words, sounds or signs.
_VOCABULARIES = {"vocab_file", "vocab", "src_vocab_file", "tgt_vocab_file"}


def load_tokenizer(checkpoint: Checkpoint, config: PreTrainedConfig) -> Any:
    """Makes the tokenizer of a model. Raises CheckpointError with the file to blame."""
    folder = checkpoint.folder
    for name in _COMMON:
        if has_file(folder, name):
            read_object(folder, name)
    if has_file(folder, _TEMPLATE):
        read_text(folder, _TEMPLATE)
    for name, field in _files_of(checkpoint, config).items():
        # Some tokenizers accept every JSON file as a vocabulary.
        if has_file(folder, name) and name.endswith(".json") and name != _TOKENIZER:
            _check_vocabulary(folder, name, field)
        elif has_file(folder, name):
            is_small = check_file(folder, name).stat().st_size < _SMALL_BYTES
            if name == _TOKENIZER and is_small and not read_object(folder, name):
                raise CheckpointError(f"{name} has no tokens")
    try:
        return _make(checkpoint.name, checkpoint.revision)
    except Exception as error:  # a damaged file may raise errors of any type
        raise tokenizer_error(checkpoint, config, error) from error


def _make(name: str, revision: str = "main") -> Any:
    """Returns the tokenizer of a folder or of an id on the hub."""
    with silence_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    ids = list(range(min(tokenizer.vocab_size, _NUM_TRIED)))
    if not tokenizer.decode(ids, skip_special_tokens=True).strip():  # some tokenizers are made without their files
        raise ValueError("none of its tokens has a text")
    return tokenizer


def check_token_ids(tokenizer: Any, checkpoint: Checkpoint, config: PreTrainedConfig, vocabulary_size: int) -> None:
    """Raises CheckpointError if a token's number is outside the model's vocabulary.

    Tokens that were added to the vocabulary may be outside: requests that have such tokens are refused.
    """
    added: Mapping[str, int] = tokenizer.get_added_vocab()
    for token, id_ in tokenizer.get_vocab().items():
        if not 0 <= id_ < vocabulary_size and (token not in added or id_ < 0):
            files = ", ".join(name for name in _files_of(checkpoint, config) if has_file(checkpoint.folder, name))
            number = f"the number of the token {json.dumps(token, ensure_ascii=False)[:60]}"
            raise CheckpointError(f"{files}: {number} is {id_}, and the model has {vocabulary_size:,} tokens")


def tokenizer_error(
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    error: Exception,
    use: Callable[[Any], object] = lambda _: None,
) -> CheckpointError:
    """Returns why a tokenizer cannot be made or used, with the damaged or missing file, and the field if it is known.

    `use` uses the tokenizer, and raises an error if that fails.
    """
    folder, names = checkpoint.folder, _files_of(checkpoint, config)
    present = [name for name in names if has_file(folder, name)]
    try:
        for name in present:
            _check_vocabulary(folder, name, names[name])
    except CheckpointError as damaged:
        return damaged
    missing = [name for name in names if name not in present]
    if missing and (not present or (len(present) + len(missing) > 1 and _TOKENIZER not in present)):
        verb, it = ("is", "it") if len(missing) == 1 else ("are", "them")
        return CheckpointError(f"{', '.join(missing)} {verb} missing, and the tokenizer cannot be made without {it}")
    why, end = plain_words(error), deadline()
    for name in dict.fromkeys((*_COMMON, _TOKENIZER, CONFIG)):
        if not has_file(folder, name):
            continue
        fields = read_object(folder, name)
        field = field_to_blame(fields, error, functools.partial(_failure, folder, name, use), end)
        if field is not None:
            return wrong_field(name, field, fields[field], why=why)
    shown = ", ".join([name for name in (_CONFIG, *present) if has_file(folder, name)])
    return CheckpointError(f"{shown}: no tokenizer can be made of what is there{why and f': {why}'}")


def _failure(folder: Path, name: str, use: Callable[[Any], object], fields: Mapping[str, Any]) -> Exception | None:
    """Returns what is raised while a tokenizer is made and used with other fields in one of its files."""
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.iterdir():
            if path.name != name:
                (Path(copy) / path.name).symlink_to(path.resolve())
        (Path(copy) / name).write_text(json.dumps(fields), encoding="utf-8")
        try:
            use(_make(copy))
        except Exception as error:  # as in `load_tokenizer`
            return error
    return None


def _files_of(checkpoint: Checkpoint, config: PreTrainedConfig) -> dict[str, str]:
    """Returns the vocabulary files of a model's tokenizer, each with its field in the tokenizer's class."""
    folder = checkpoint.folder
    name: Any = read_object(folder, _CONFIG).get("tokenizer_class") if has_file(folder, _CONFIG) else None
    tokenizer_class: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    if tokenizer_class is None:
        try:
            tokenizer_class = transformers.TOKENIZER_MAPPING[type(config)]
        except KeyError:
            tokenizer_class = transformers.PreTrainedTokenizerFast
    tokenizer_class = tokenizer_class[-1] if isinstance(tokenizer_class, tuple) else tokenizer_class
    files: dict[str, str] = getattr(tokenizer_class, "vocab_files_names", {})
    return {file: field for field, file in files.items() if field not in _OTHER_FILES}


def _check_vocabulary(folder: Path, name: str, field: str) -> None:
    """Raises CheckpointError if a vocabulary file is damaged."""
    if name.endswith((".model", ".spm")):
        try:
            sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{name} is not a model of SentencePiece") from error
    elif not name.endswith(".json"):
        read_text(folder, name, may_be_empty=True)
    elif name == _TOKENIZER:
        fields = read_object(folder, name)
        for needed, (kind, words) in _TOKENIZER_FIELDS.items():
            if not isinstance(fields.get(needed), kind):
                raise wrong_field(name, needed, fields.get(needed), words)
        if "vocab" not in fields["model"]:
            raise wrong_field(name, "model", fields["model"], "an object with a field vocab")
        if fields["model"].get("type", _MODELS[0]) not in _MODELS:
            raise wrong_field(name, "model.type", fields["model"]["type"], " or ".join(map(json.dumps, _MODELS)))
        for part in _TOKENIZER_PARTS:
            if not isinstance(fields.get(part), (dict, type(None))):
                raise wrong_field(name, part, fields[part], "an object with fields or null")
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
