"""The models that `bench_engine.py` measures, and their source sentences.

This module knows folders of models, texts and token ids. It does not know the programs that run the models.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sidelight.server.models.loader import bundled_model
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, MarianConfig, MarianMTModel

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"

VOCABULARY, POSITIONS, LENGTH = 58_101, 512, 30
BUNDLED_PADDING = 6000  # the bundled model's padding token, its last token

Source = str | list[int]

_SENTENCES = (
    "My grandmother is still vigorous at 82 years old.",
    "Where did you buy that old book?",
    "I don't want to be your friend.",
    "The train to Munich leaves at a quarter past nine.",
)


@dataclass(frozen=True)
class Workload:
    """A model and its sentences.

    Attributes:
        name: The name of the workload in options and results.
        title: The name of the workload in tables.
        folder: The folder of the model.
        sources: Texts, or token ids with the end token, in order.
        new_tokens: The forced number of tokens of every target; None: the model decides.
        all_at_once: Whether a run has as many sentences as the concurrency; otherwise a run has all sentences.
        turns: How often each contender runs in a round at every concurrency: more often if runs are short.
    """

    name: str
    title: str
    folder: Path
    sources: Sequence[Source]
    new_tokens: int | None = None
    all_at_once: bool = False
    turns: int = 1

    def sentences(self, concurrency: int) -> Sequence[Source]:
        """The sentences of a run at this concurrency."""
        return self.sources[:concurrency] if self.all_at_once else self.sources


@dataclass(frozen=True)
class Size:
    """The sizes of a model's decoder."""

    layers: int
    heads: int
    step_weights: int  # the number of weights that one decoding step reads


def long_streams(num_streams: int, turns: int = 1) -> Workload:
    """The bundled model with `turns` everyday sentences for each stream, and 32 tokens for each sentence."""
    sources = [_SENTENCES[number % len(_SENTENCES)] for number in range(num_streams)] * turns
    return Workload("bundled", "bundled model", bundled_model(), sources, new_tokens=32)


def bundled_workload(sentences: int) -> Workload | None:
    """The bundled model with the first real sentences; None if the file of sentences is not on this machine."""
    if not DATA.exists():
        return None
    rows = DATA.read_text(encoding="utf-8").splitlines()[:sentences]
    title = f"bundled English-German model, {len(rows)} Tatoeba sentences"
    return Workload("bundled", title, bundled_model(), [row.split("\t")[0] for row in rows])


def opus_workload(folder: Path, sentences: int) -> Workload:
    """A random model of opus-mt's size, written to a folder, and random sources of 30 tokens."""
    write_opus_model(folder)
    generator = torch.Generator().manual_seed(1)
    # Real pieces and the end token: the made-up pieces have no text.
    ids = torch.randint(2, 6000, (sentences, LENGTH - 1), generator=generator).tolist()
    title = f"random Marian of opus-mt's size, {LENGTH} source and {LENGTH} target tokens"
    return Workload("opus", title, folder, [[*row, 0] for row in ids], LENGTH, all_at_once=True, turns=3)


def measure_size(folder: Path) -> Size:
    """Counts the weights that a step reads: the output projection, and the decoder without cross keys and values.

    The keys and values of cross-attention are computed once, before the steps.
    """
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    step_weights = model.get_output_embeddings().weight.numel()
    for name, weight in model.get_decoder().layers.named_parameters():
        if "encoder_attn.k_proj" not in name and "encoder_attn.v_proj" not in name:
            step_weights += weight.numel()
    return Size(config.decoder_layers, config.decoder_attention_heads, step_weights)


def write_opus_model(folder: Path, *, sharpness: float = 0.08, tiny: bool = False) -> None:
    """Writes a random Marian of opus-mt's size with a tokenizer.

    Args:
        folder: The folder of the model.
        sharpness: The standard deviation of the weights of queries and keys. With 0.08 the model's own probabilities in
            bfloat16 are too rough for comparisons.
        tiny: Whether the model has 2 layers and a width of 32, for dry runs.
    """
    torch.manual_seed(0)
    vocabulary, width, layers = (6_100, 32, 2) if tiny else (VOCABULARY, 512, 6)
    config = MarianConfig(
        vocab_size=vocabulary,
        decoder_vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        activation_function="swish",
        max_position_embeddings=POSITIONS,
        scale_embedding=True,
        dropout=0.0,
        pad_token_id=vocabulary - 1,
        decoder_start_token_id=vocabulary - 1,
        bos_token_id=0,
        eos_token_id=0,
        forced_eos_token_id=None,
    )
    model = MarianMTModel(config).float().eval()
    _draw_weights(model, sharpness)
    # As in opus-mt, the padding token is never generated.
    model.generation_config = GenerationConfig(
        bad_words_ids=[[vocabulary - 1]],
        decoder_start_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        eos_token_id=0,
        num_beams=1,
    )
    model.save_pretrained(folder)
    write_tokenizer(folder, vocabulary, vocabulary - 1)


@torch.no_grad()
def _draw_weights(model: MarianMTModel, sharpness: float) -> None:
    """Draws weights that make attention rows far from uniform, and a layer's output larger than its input.

    Otherwise the likeliest token is always the last token again, and a target is one token 30 times.
    """
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.normal_(0, sharpness)
        elif weight.ndim == 2 and "embed" not in name:
            weight.normal_(0, 0.06)
    # As in opus-mt, the embedding of the padding token, which starts targets, is zeros.
    model.model.shared.weight[model.config.pad_token_id] = 0


def write_tokenizer(folder: Path, size: int, padding: int) -> None:
    """Writes a tokenizer of `size` pieces: the bundled model's pieces, and made-up pieces.

    The padding token has the id `padding`. The bundled model's piece with this id takes the id that the padding token
    has in the bundled model.
    """
    for file in ("source.spm", "target.spm"):
        shutil.copy(bundled_model() / file, folder)
    pieces = json.loads((bundled_model() / "vocab.json").read_text(encoding="utf-8"))
    vocabulary = {piece: BUNDLED_PADDING if id_ == padding else id_ for piece, id_ in pieces.items()}
    vocabulary["<pad>"] = padding
    vocabulary |= {f"▁piece{id_}": id_ for id_ in sorted(set(range(size)) - set(vocabulary.values()))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    options = json.loads((bundled_model() / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = options["added_tokens_decoder"]
    added[str(padding)] = added.pop(str(BUNDLED_PADDING))
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
