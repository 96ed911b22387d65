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
from sidelight.server.models import bundled_model
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, MarianConfig, MarianMTModel

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"

VOCABULARY, POSITIONS, LENGTH = 58_101, 512, 30

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
    _write_opus_model(folder)
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


def _write_opus_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCABULARY,
        decoder_vocab_size=VOCABULARY,
        d_model=512,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=2048,
        decoder_ffn_dim=2048,
        activation_function="swish",
        max_position_embeddings=POSITIONS,
        scale_embedding=True,
        dropout=0.0,
        pad_token_id=VOCABULARY - 1,
        decoder_start_token_id=VOCABULARY - 1,
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
                weight.normal_(0, 0.08)
            elif weight.ndim == 2 and "embed" not in name:
                weight.normal_(0, 0.06)
        # As opus-mt's. The padding token starts targets.
        model.model.shared.weight[VOCABULARY - 1] = 0
    # Likewise: the padding token is never written.
    model.generation_config = GenerationConfig(
        bad_words_ids=[[VOCABULARY - 1]],
        decoder_start_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
        eos_token_id=0,
        num_beams=1,
    )
    model.save_pretrained(folder)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    """The bundled model's pieces, then made-up ones, and the padding token at the end, where Marian has it."""
    for file in ("source.spm", "target.spm"):
        shutil.copy(bundled_model() / file, folder)
    vocabulary = json.loads((bundled_model() / "vocab.json").read_text(encoding="utf-8"))
    del vocabulary["<pad>"]
    vocabulary |= {f"▁piece{id_}": id_ for id_ in range(len(vocabulary), VOCABULARY - 1)}
    vocabulary["<pad>"] = VOCABULARY - 1
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    options = json.loads((bundled_model() / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = options["added_tokens_decoder"]
    added[str(VOCABULARY - 1)] = added.pop(next(id_ for id_, token in added.items() if token["content"] == "<pad>"))
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
