"""A model's configuration as transformers reads it, and which of its fields is to blame where no model comes of it.

The libraries say of a wrong field what went wrong in their code. Here the model is made again, without memory for its
tensors, with one field after another left out. Knows configurations and modules; knows no requests.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import re
import tempfile
from collections.abc import Mapping
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

from .fields import deadline, declared_types, field_to_blame, plain_words, words_of_type, wrong_field
from .files import CONFIG, GENERATION_CONFIG, Checkpoint, CheckpointError
from .weights import TooLargeError, bounded, silent

log = logging.getLogger(__name__)

# Tokens of a model that is tried.
_TRIED = 4

# What torch says where a family looks at the numbers of a tensor that has no memory.
_NO_NUMBERS = re.compile(r"\bmeta\b", re.IGNORECASE)


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
        field = field_to_blame(checkpoint.config, error, _reading_failure, deadline())
        why = plain_words(error)
        if field is not None:
            raise wrong_field(CONFIG, field, checkpoint.config[field], why=why) from error
        raise CheckpointError(f"{CONFIG}: transformers cannot read its fields{why and f': {why}'}") from error


def class_for(config: PreTrainedConfig) -> Any:
    """Transformers' class for a model that writes text. Raises CheckpointError where a family has none."""
    if config.is_encoder_decoder:
        kind, auto, known = "an encoder-decoder", AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        kind, auto, known = "a decoder", AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise CheckpointError(f"{CONFIG}: {config.model_type} is not {kind} that writes text")
    return auto


def model_error(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """Why a model cannot be made, or cannot be run: names the field of config.json that is to blame.

    Where none is, and the error is not one for people, the log has it.
    """
    why, end = plain_words(error), deadline()
    for runs in (False, True):
        trial = functools.partial(_making_failure, checkpoint, error, runs, end)
        field = field_to_blame(checkpoint.config, error, trial, end)
        if field is not None:
            said = str(error) if isinstance(error, CheckpointError) else why
            return wrong_field(CONFIG, field, checkpoint.config[field], why=said)
    if isinstance(error, CheckpointError):
        return error
    log.warning("the model cannot be run", exc_info=error)
    return CheckpointError(f"the model cannot be run{f': {why}' if why else '; the log says why'}")


def read_generation_config(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError that names a field, unless transformers can read the generation config."""
    try:
        _make_generation_config(checkpoint.generation_config)
    except Exception as error:  # values of any type
        fields = checkpoint.generation_config
        field = field_to_blame(fields, error, _generation_failure, deadline())
        why = plain_words(error)
        if field is not None:
            raise wrong_field(GENERATION_CONFIG, field, fields[field], why=why) from error
        raise CheckpointError(f"{GENERATION_CONFIG}: {why or 'transformers cannot read its fields'}") from error


def _reading_failure(fields: Mapping[str, Any]) -> Exception | None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(fields), encoding="utf-8")
        try:
            with silent():
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # as in `read_config`
            return error
    return None


@torch.inference_mode()
def _making_failure(
    checkpoint: Checkpoint, found: Exception, runs: bool, end: float, fields: Mapping[str, Any]
) -> Exception | None:
    """What is raised while a model is made of a configuration, within bounds, and run, if that is asked.

    In float32, since families look at numbers of half precision, and nothing without memory has numbers.
    """
    try:
        with silent(), bounded(checkpoint, numbers_too=isinstance(found, TooLargeError), end=end):
            config = CONFIG_MAPPING[fields["model_type"]].from_dict(copy.deepcopy(dict(fields)))
            with torch.device("meta"):
                auto = class_for(config)
                model: Any = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            if runs:
                ids = torch.zeros(1, _TRIED, dtype=torch.int64, device="meta")
                model(input_ids=ids, **({"decoder_input_ids": ids} if config.is_encoder_decoder else {}))
    except Exception as error:  # as in `read_config`
        return None if _NO_NUMBERS.search(str(error)) else error  # whether it works is not seen
    return None


def _make_generation_config(fields: Mapping[str, Any]) -> None:
    with silent():
        GenerationConfig.from_dict(copy.deepcopy(dict(fields))).validate()


def _generation_failure(fields: Mapping[str, Any]) -> Exception | None:
    try:
        _make_generation_config(fields)
    except Exception as error:  # as above
        return error
    return None
