"""A model's configuration as transformers reads it, and which of its fields is to blame where no model comes of it.

The libraries say of a wrong field what went wrong in their code. Here the model is made again, without memory for its
tensors, with one field after another left out. Knows configurations and modules; knows no requests.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
)

from .fields import declared_types, field_to_blame, plain_words, words_of_type, wrong_field
from .files import CONFIG, GENERATION_CONFIG, Checkpoint, CheckpointError
from .weights import TooLargeError, bounded, silent

# Tokens of a model that is tried.
_TRIED = 4


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """The configuration, with transformers' defaults. Raises CheckpointError that names a field."""
    try:
        with silent():
            return AutoConfig.from_pretrained(checkpoint.name, revision=checkpoint.revision, trust_remote_code=False)
    except Exception as error:  # values of any type, in fields that each family reads as it likes
        family = CONFIG_MAPPING[checkpoint.config["model_type"]]
        types = declared_types(family)
        for name, value in checkpoint.config.items():
            if name in types and (words := words_of_type(types[name], value)) is not None:
                raise wrong_field(CONFIG, name, value, words) from error
        field = field_to_blame(checkpoint.config, _is_read)
        raise _config_error(checkpoint, field, error, "transformers cannot read its fields") from error


def class_for(config: PreTrainedConfig) -> Any:
    """Transformers' class for a model that writes text. Raises CheckpointError where a family has none."""
    if config.is_encoder_decoder:
        kind, auto, known = "an encoder-decoder", AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        kind, auto, known = "a decoder", AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise CheckpointError(f"{CONFIG}: {config.model_type} is not {kind} that writes text")
    return auto


def model_error(checkpoint: Checkpoint, error: Exception, problem: str) -> CheckpointError:
    """Why a model cannot be made, or cannot be run. `problem` says it where no field of config.json is to blame."""
    field = None
    bounds = functools.partial(bounded, checkpoint) if isinstance(error, TooLargeError) else contextlib.nullcontext
    for runs in (False, True):
        field = field or field_to_blame(checkpoint.config, functools.partial(_is_made, bounds, runs))
    return _config_error(checkpoint, field, error, problem)


def read_generation_config(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError that names a field, unless transformers can read the generation config."""
    try:
        _make_generation_config(checkpoint.generation_config)
    except Exception as error:  # values of any type
        fields = checkpoint.generation_config
        field = field_to_blame(fields, _is_generation_config)
        why = plain_words(error)
        if field is not None:
            raise wrong_field(GENERATION_CONFIG, field, fields[field], why=why) from error
        raise CheckpointError(f"{GENERATION_CONFIG}: {why or 'transformers cannot read its fields'}") from error


def _config_error(checkpoint: Checkpoint, field: str | None, error: Exception, problem: str) -> CheckpointError:
    why = str(error) if isinstance(error, CheckpointError) else plain_words(error)
    if field is not None:
        return wrong_field(CONFIG, field, checkpoint.config[field], why=why)
    if isinstance(error, CheckpointError):
        return error
    return CheckpointError(f"{CONFIG}: {problem}{why and f': {why}'}")


def _is_read(fields: Mapping[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        try:
            with silent():
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # as in `read_config`
            return False
    return True


@torch.inference_mode()
def _is_made(bounds: Callable[[], AbstractContextManager[None]], runs: bool, fields: Mapping[str, Any]) -> bool:
    """Whether a model is made of a configuration, within bounds of its size, and runs, if that is asked."""
    try:
        with silent(), bounds():
            config = CONFIG_MAPPING[fields["model_type"]].from_dict(copy.deepcopy(dict(fields)))
            with torch.device("meta"):
                model: Any = class_for(config).from_config(config, attn_implementation="eager").eval()
            if runs:
                ids = torch.zeros(1, _TRIED, dtype=torch.int64, device="meta")
                model(input_ids=ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {}))
    except Exception:  # as in `read_config`
        return False
    return True


def _make_generation_config(fields: Mapping[str, Any]) -> None:
    with silent():
        GenerationConfig.from_dict(copy.deepcopy(dict(fields))).validate()


def _is_generation_config(fields: Mapping[str, Any]) -> bool:
    try:
        _make_generation_config(fields)
    except Exception:  # as above
        return False
    return True
