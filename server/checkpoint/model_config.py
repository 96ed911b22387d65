"""A model's configuration as transformers reads it, and the field that is to blame if no model can be made.

For a wrong field, the libraries say what went wrong in their code. To find the field, the model is made again, without
memory for its tensors, and without one field after another.
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
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    PreTrainedConfig,
)

from ..capture import feature_shape, source_inputs
from .fields import deadline, declared_types, field_to_blame, plain_words, words_of_type, wrong_field
from .files import CONFIG, GENERATION_CONFIG, Checkpoint
from .folder import CheckpointError
from .weights import TooLargeError, limit_size, silence_transformers

log = logging.getLogger(__name__)

# How many tokens a trial of a model reads.
_NUM_TOKENS = 4

# Families that write the words of a recording.
_SPEECH = ("whisper",)

# What torch says if a family's code looks at the numbers of a tensor without memory.
_NO_NUMBERS = re.compile(r"\bmeta\b", re.IGNORECASE)


def read_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Returns the configuration, with transformers' defaults. Raises CheckpointError that names the field."""
    try:
        with silence_transformers():
            return AutoConfig.from_pretrained(checkpoint.name, revision=checkpoint.revision, trust_remote_code=False)
    except Exception as error:  # families read their fields in many ways, and values may have any type
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
    """Returns transformers' class for a model that generates text. Raises CheckpointError if the family has none."""
    if config.model_type in _SPEECH:
        return AutoModelForSpeechSeq2Seq
    if type(config) in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING:
        known = ", ".join(_SPEECH)
        raise CheckpointError(f"{CONFIG}: {config.model_type} reads recordings; of such families {known} is supported")
    if config.is_encoder_decoder:
        kind, auto, known = "an encoder-decoder", AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    else:
        kind, auto, known = "a decoder", AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise CheckpointError(f"{CONFIG}: {config.model_type} is not {kind} that writes text")
    return auto


def model_error(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """Returns why a model cannot be made or run, with the field of config.json that is to blame.

    If no field is to blame, and people cannot read the error, the error goes to the log.
    """
    why, end = plain_words(error), deadline()
    for runs in (False, True):
        trial = functools.partial(_making_failure, checkpoint, error, runs, end)
        field = field_to_blame(checkpoint.config, error, trial, end)
        if field is not None:
            reason = str(error) if isinstance(error, CheckpointError) else why
            return wrong_field(CONFIG, field, checkpoint.config[field], why=reason)
    if isinstance(error, CheckpointError):
        return error
    log.warning("the model cannot be run", exc_info=error)
    return CheckpointError(f"the model cannot be run{f': {why}' if why else '; the log says why'}")


def read_generation_config(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError that names the field, unless transformers can read the generation config."""
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
            with silence_transformers():
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # as in `read_config`
            return error
    return None


@torch.inference_mode()
def _making_failure(
    checkpoint: Checkpoint, error: Exception, runs: bool, end: float, fields: Mapping[str, Any]
) -> Exception | None:
    """Returns what is raised while a model of limited size is made of a configuration, and run if `runs`.

    The model is float32: some families look at numbers of half precision, and tensors without memory have none.
    """
    try:
        with silence_transformers(), limit_size(checkpoint, limits_elements=isinstance(error, TooLargeError), end=end):
            config = CONFIG_MAPPING[fields["model_type"]].from_dict(copy.deepcopy(dict(fields)))
            with torch.device("meta"):
                auto = class_for(config)
                model: Any = auto.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
            if runs:
                ids = torch.zeros(1, _NUM_TOKENS, dtype=torch.int64, device="meta")
                source = ids if (shape := feature_shape(model)) is None else torch.zeros(1, *shape, device="meta")
                decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
                model(**source_inputs(source), **decoder)
    except Exception as trial_error:  # as in `read_config`
        # An error about missing numbers does not show whether the model works.
        return None if _NO_NUMBERS.search(str(trial_error)) else trial_error
    return None


def _make_generation_config(fields: Mapping[str, Any]) -> None:
    with silence_transformers():
        GenerationConfig.from_dict(copy.deepcopy(dict(fields))).validate()


def _generation_failure(fields: Mapping[str, Any]) -> Exception | None:
    try:
        _make_generation_config(fields)
    except Exception as error:  # as above
        return error
    return None
