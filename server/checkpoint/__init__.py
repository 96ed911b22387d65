"""The files of a model, checked before anything is made of them. Errors name the file, and the field.

files                Checkpoint: which files there are; JSON of the right form; weights in safetensors only
weights              makes the model; every tensor is there, has the right shape, and is finite
model_config         config.json as transformers reads it
generation_config    checks the defaults of every request's decoding
tokenizer_files      makes the tokenizer
alignment_heads      reads the heads that align words
fields               finds the field that is to blame, and says so in JSON's words
"""

from .alignment_heads import load_alignment_preset
from .files import CONFIG, Checkpoint, CheckpointError, open_checkpoint
from .generation_config import check_generation_config
from .model_config import class_for, model_error, read_config, read_generation_config
from .tokenizer_files import load_tokenizer, tokenizer_error
from .weights import TooLargeError, check_finite, load_weights

__all__ = [
    "CONFIG",
    "Checkpoint",
    "CheckpointError",
    "TooLargeError",
    "check_finite",
    "check_generation_config",
    "class_for",
    "load_alignment_preset",
    "load_tokenizer",
    "load_weights",
    "model_error",
    "open_checkpoint",
    "read_config",
    "read_generation_config",
    "tokenizer_error",
]
