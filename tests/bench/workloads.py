"""The models that `bench_engine.py` measures on, and what they are given to read.

It knows folders of models, texts and token ids; nothing of who reads them.
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
BUNDLED_PADDING = 6000  # the bundled model's padding token, its last

Source = str | list[int]


@dataclass(frozen=True)
class Workload:
    """A model and its sentences.

    Attributes:
        name: A word for options and results.
        title: What people are told.
        folder: The model's.
        sources: Texts, or token ids with the end token. In order.
        new_tokens: How many tokens every target has, by force; None: as many as the model writes.
        all_at_once: Whether a round has as many sentences as are in flight; otherwise it has them all.
        turns: How often each contender runs in a round at every concurrency: where runs are short, more often.
    """

    name: str
    title: str
    folder: Path
    sources: Sequence[Source]
    new_tokens: int | None = None
    all_at_once: bool = False
    turns: int = 1

    def sentences(self, concurrency: int) -> Sequence[Source]:
        """What a run at this concurrency reads."""
        return self.sources[:concurrency] if self.all_at_once else self.sources


@dataclass(frozen=True)
class Size:
    """What decoding with a model reads and gives."""

    layers: int
    heads: int
    step_weights: int  # numbers that one decoding step reads


def bundled_workload(sentences: int) -> Workload | None:
    """The bundled model on the first real sentences; None where they are not here."""
    if not DATA.exists():
        return None
    rows = DATA.read_text(encoding="utf-8").splitlines()[:sentences]
    title = f"bundled English-German model, {len(rows)} Tatoeba sentences"
    return Workload("bundled", title, bundled_model(), [row.split("\t")[0] for row in rows])


def opus_workload(folder: Path, sentences: int) -> Workload:
    """A random model of opus-mt's size, written to a folder, and random sources of 30 tokens."""
    write_opus_model(folder)
    generator = torch.Generator().manual_seed(1)
    # Real pieces and the end token. The made-up ones have no text.
    ids = torch.randint(2, 6000, (sentences, LENGTH - 1), generator=generator).tolist()
    title = f"random Marian of opus-mt's size, {LENGTH} source and {LENGTH} target tokens"
    return Workload("opus", title, folder, [[*row, 0] for row in ids], LENGTH, all_at_once=True, turns=3)


def measure_size(folder: Path) -> Size:
    """What a step reads: all of the decoder's layers but cross keys and values, which stand already, and the output."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    numbers = model.get_output_embeddings().weight.numel()
    for name, weight in model.get_decoder().layers.named_parameters():
        if "encoder_attn.k_proj" not in name and "encoder_attn.v_proj" not in name:
            numbers += weight.numel()
    return Size(config.decoder_layers, config.decoder_attention_heads, numbers)


def write_opus_model(folder: Path, *, sharpness: float = 0.08, tiny: bool = False) -> None:
    """Writes a random Marian of opus-mt's size with a tokenizer.

    Args:
        folder: Where.
        sharpness: The standard deviation of the weights of queries and keys. With 0.08 the model's own probabilities in
            bfloat16 are too rough to compare with.
        tiny: Makes it 2 layers and 32 numbers wide, for dry runs.
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
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough that rows of attention are far from uniform, and that a layer's output outweighs what it
            # read: otherwise the likeliest token is the last one again, and a target is one token 30 times.
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.normal_(0, sharpness)
            elif weight.ndim == 2 and "embed" not in name:
                weight.normal_(0, 0.06)
        # As opus-mt's. The padding token starts targets.
        model.model.shared.weight[vocabulary - 1] = 0
    # Likewise: the padding token is never written.
    model.generation_config = GenerationConfig(
        bad_words_ids=[[vocabulary - 1]],
        decoder_start_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
        eos_token_id=0,
        num_beams=1,
    )
    model.save_pretrained(folder)
    write_tokenizer(folder, vocabulary, vocabulary - 1)


def write_tokenizer(folder: Path, size: int, padding: int) -> None:
    """Writes the bundled model's pieces, made-up ones up to `size`, and the padding token where a model has it.

    A piece that has the padding token's place takes the place that the padding token has in the bundled model.
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
