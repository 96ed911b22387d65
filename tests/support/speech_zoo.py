"""Small random Whispers with tokenizers that work, and recordings as features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from model_zoo import Family, build_model, byte_level

NUM_BINS, NUM_FRAMES = 12, 46
_LANGUAGES = ("<|en|>", "<|de|>", "<|fr|>")
_TASKS = {"translate": "<|translate|>", "transcribe": "<|transcribe|>"}


def build_whisper(folder: Path, *, is_multilingual: bool = True) -> Path:
    """Makes a Whisper in a folder, with layers and heads that differ in encoder and decoder. Returns its path."""
    name = "whisper" if is_multilingual else "whisper.en"
    path = build_model(name, folder, WHISPER)
    config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
    tokenizer = tf.AutoTokenizer.from_pretrained(path)
    config.pop("_from_model_config")  # transformers would keep only the fields that it knows
    id_of: Any = tokenizer.convert_tokens_to_ids
    config |= {
        "no_timestamps_token_id": id_of("<|notimestamps|>"),
        "suppress_tokens": [id_of("!"), *map(id_of, _TASKS.values()), *map(id_of, _LANGUAGES)],
        "begin_suppress_tokens": [id_of("a"), tokenizer.eos_token_id],
        "is_multilingual": is_multilingual,
    }
    if is_multilingual:
        config |= {
            "lang_to_id": {token: id_of(token) for token in _LANGUAGES},
            "task_to_id": {task: id_of(token) for task, token in _TASKS.items()},
        }
    (path / "generation_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def _whisper() -> tuple[Any, Any]:
    bpe = json.loads(byte_level("$A", ("<|endoftext|>",)).backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in bpe["merges"]]
    special = ["<|startoftranscript|>", *_LANGUAGES, *_TASKS.values(), "<|nospeech|>", "<|notimestamps|>"]
    # The end token stands behind the tokens of texts: Whisper's tokenizer takes greater ids for time stamps.
    pieces = [piece for piece in bpe["vocab"] if piece != "<|endoftext|>"]
    vocabulary = {piece: id_ for id_, piece in enumerate(pieces)}
    tokenizer = tf.WhisperTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=special)
    tokenizer.add_tokens([f"<|{seconds / 50:.2f}|>" for seconds in range(4)])
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = tf.WhisperConfig(
        vocab_size=len(tokenizer) + 1,
        num_mel_bins=NUM_BINS,
        d_model=32,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=NUM_FRAMES // 2,
        max_target_positions=64,
        decoder_start_token_id=tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return tf.WhisperForConditionalGeneration(config).eval(), tokenizer


WHISPER = Family(_whisper, inseq=False, seed=4)


def recording(number: int) -> np.ndarray:
    """The features of a recording by its number, float32 `[NUM_BINS, NUM_FRAMES]`."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(NUM_BINS, NUM_FRAMES, generator=generator).numpy()
