"""The files of a model, checked before anything is made of them. Errors name the file, and the field.

files                Checkpoint: which files there are; weights in safetensors only
folder               opens files: in the folder, of a bounded size, JSON of the right form
unsafe_fields        refuses fields that name code, unknown classes, or files elsewhere
manifest             compares the files with their SHA-256, if the folder has a list
weights              makes the model; every tensor is there, has the right shape, and is finite
model_config         config.json as transformers reads it
generation_config    checks the defaults of every request's decoding
tokenizer_files      makes the tokenizer
alignment_heads      reads the heads that align words
fields               finds the field that is to blame, and says so in JSON's words
"""

from .alignment_heads import load_alignment_preset
from .files import CONFIG, Checkpoint, open_checkpoint
from .folder import CheckpointError
from .generation_config import check_generation_config
from .model_config import class_for, model_error, read_config, read_generation_config
from .tokenizer_files import check_token_ids, load_tokenizer, tokenizer_error
from .weights import TooLargeError, check_finite, load_weights

__all__ = [
    "CONFIG",
    "Checkpoint",
    "CheckpointError",
    "TooLargeError",
    "check_finite",
    "check_generation_config",
    "check_token_ids",
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
