"""A model's tokenizer from its files, and which of the files is to blame where it cannot be made.

The tokenizers' own libraries say of a damaged file what went wrong in their code. Knows files; what tokens are is in
`tokenization`.
"""

from __future__ import annotations

from typing import Any

import sentencepiece
import transformers
from transformers import AutoTokenizer, PreTrainedConfig

from .checkpoint import Checkpoint, CheckpointError, check_file, has_file, one_line, read_object, read_text

_CONFIG = "tokenizer_config.json"
# Small, and read by every tokenizer where they are there. What is wrong with some of them is ignored in silence.
_COMMON = (_CONFIG, "special_tokens_map.json", "added_tokens.json")
_TEMPLATE = "chat_template.jinja"

# Bytes of a vocabulary below which it is looked at before anything is made of it.
_SMALL = 1000

# So many of the first tokens must have some text together.
_TRIED = 1000

# Fields of a tokenizer's class that are no files of its vocabulary, or need not be there.
_OTHER_FILES = {"tokenizer_config_file", "target_vocab_file"}


def load_tokenizer(checkpoint: Checkpoint, config: PreTrainedConfig) -> Any:
    """Makes the tokenizer of a model. Raises CheckpointError that names the file to blame."""
    folder = checkpoint.folder
    for name in _COMMON:
        fields = read_object(folder, name) if has_file(folder, name) else {}
        if not isinstance(fields.get("tokenizer_class", ""), (str, type(None))):
            raise CheckpointError(f"{name}: tokenizer_class must be a text")
    if has_file(folder, _TEMPLATE):
        read_text(folder, _TEMPLATE)
    for name in _files_of(checkpoint, config)[1]:
        if has_file(folder, name):  # some take whatever they find for a vocabulary
            is_small = check_file(folder, name).stat().st_size < _SMALL
            if name.endswith(".json") and is_small and not read_object(folder, name):
                raise CheckpointError(f"{name} has no tokens")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            checkpoint.name, revision=checkpoint.revision, trust_remote_code=False
        )
        ids = list(range(min(tokenizer.vocab_size, _TRIED)))
        is_empty = not tokenizer.decode(ids, skip_special_tokens=True).strip()
    except Exception as error:  # whatever a damaged file makes a tokenizer raise
        raise tokenizer_error(checkpoint, config, error) from error
    if is_empty:  # what some make of files that are not there
        raise tokenizer_error(checkpoint, config, ValueError("no token has a text"))
    return tokenizer


def tokenizer_error(checkpoint: Checkpoint, config: PreTrainedConfig, error: Exception) -> CheckpointError:
    """Why a tokenizer cannot be made or used: names the damaged or missing file, where it is known."""
    folder, (kind, names) = checkpoint.folder, _files_of(checkpoint, config)
    present = [name for name in names if has_file(folder, name)]
    try:
        for name in present:
            if name.endswith(".json"):
                read_object(folder, name)
            elif name.endswith((".model", ".spm")):
                _check_sentencepiece(folder / name, name)
            else:
                read_text(folder, name, may_be_empty=True)
    except CheckpointError as damaged:
        return damaged
    missing = [name for name in names if name not in present]
    if missing and (not present or (len(present) + len(missing) > 1 and "tokenizer.json" not in present)):
        verb = "is" if len(missing) == 1 else "are"
        return CheckpointError(f"{', '.join(missing)} {verb} missing, and {kind} cannot be made without")
    shown = ", ".join([name for name in (_CONFIG, *present) if has_file(folder, name)])
    return CheckpointError(f"{shown}: {kind} cannot be made of what is there: {one_line(error)}")


def _files_of(checkpoint: Checkpoint, config: PreTrainedConfig) -> tuple[str, list[str]]:
    """The name of a model's class of tokenizers, and the files of its vocabulary."""
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
    return getattr(found, "__name__", "the tokenizer"), [
        file for field, file in files.items() if field not in _OTHER_FILES
    ]


def _check_sentencepiece(path: Any, name: str) -> None:
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{name} is not a model of SentencePiece") from error
