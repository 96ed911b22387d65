"""Reads the heads that align words: alignment_heads.json, or the field of that name in a generation config."""

from __future__ import annotations

from ..alignment import LEXICON_FILE, PRESET_FILE, AlignmentPreset, PresetError, read_preset, read_whisper_heads
from .files import Checkpoint
from .folder import CheckpointError, check_file, has_file, read_object


def load_alignment_preset(checkpoint: Checkpoint, num_layers: int, num_heads: int) -> AlignmentPreset | None:
    """Returns the preset of a model with so many layers of cross-attention; None if its files have none.

    Raises CheckpointError.
    """
    folder = checkpoint.folder
    try:
        if has_file(folder, PRESET_FILE):
            fields = read_object(folder, PRESET_FILE)
            if fields.get("lexicon") is not None:
                check_file(folder, LEXICON_FILE)
            return read_preset(fields, folder, num_layers, num_heads)
        pairs = checkpoint.generation_config.get("alignment_heads")
        return None if pairs is None else read_whisper_heads(pairs, num_layers, num_heads)
    except PresetError as error:
        raise CheckpointError(str(error)) from error
