"""Trains a small translation model on a core, for benches that need a model without calibration.

    python tests/bench/train_small.py SHARED_DATA {t5-en-de,pegasus-de-en} FOLDER [--minutes MINUTES]

SHARED_DATA has the Tatoeba files. FOLDER gets the model every ten minutes and at the end, as transformers saves it.
MINUTES are minutes of processor time, so that a busy machine gives the same model.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers as tf
from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

_MAX_TOKENS = 600  # of a batch's targets
_NUM_DEV = 300
_PIECES = 2500
_MAX_PIECES = 16  # of a text
_RATE = 2e-3
_RATE_END = 2e-5
_SAVE_SECONDS = 600
_WARMUP = 300

Texts = list[tuple[str, str]]


def make_t5() -> Any:
    """Makes a T5 model of 4 layers: relative positions, layer norms before, no biases, no scaling of scores."""
    config = tf.T5Config(
        vocab_size=_PIECES, d_model=128, d_kv=32, d_ff=512, num_layers=4, num_heads=4, dropout_rate=0.0,
        tie_word_embeddings=False, attn_implementation="eager",
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = tf.T5ForConditionalGeneration(config)
    # T5's first weights are made for Adafactor, whose steps grow with the weight.
    model.shared.weight.data *= 0.1
    for name, parameter in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            parameter.data *= 0.2
    return model


def make_pegasus() -> Any:
    """Makes a Pegasus model of 2 and 6 layers: sinusoids, layer norms before, biases, 8 narrow heads."""
    config = tf.PegasusConfig(
        vocab_size=_PIECES, d_model=128, encoder_layers=2, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=384, decoder_ffn_dim=384, max_position_embeddings=256,
        scale_embedding=True, activation_function="relu", attn_implementation="eager", dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, forced_eos_token_id=1,
    )  # fmt: skip
    return tf.PegasusForConditionalGeneration(config)


_MODELS: dict[str, tuple[Callable[[], Any], bool]] = {
    "t5-en-de": (make_t5, False),
    "pegasus-de-en": (make_pegasus, True),
}


def make_tokenizer(texts: Texts) -> Any:
    """Makes a tokenizer of unigram pieces for both languages, without case."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = tokenizers.Tokenizer(tokenizers.models.Unigram())
    pieces.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=_PIECES, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    pieces.train_from_iterator((text for pair in texts for text in pair), trainer)
    pieces.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tf.PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def batches(sources: Sequence[list[int]], targets: Sequence[list[int]]) -> Iterator[list[int]]:
    """Yields the numbers of pairs of like lengths, without end."""
    while True:
        order = sorted(range(len(sources)), key=lambda i: len(targets[i]) + len(sources[i]) / 2 + random.random() * 3)
        groups: list[list[int]] = [[]]
        for number in order:
            if groups[-1] and len(targets[number]) * len(groups[-1]) > _MAX_TOKENS:
                groups.append([])
            groups[-1].append(number)
        random.shuffle(groups)
        yield from groups


def padded(rows: Sequence[list[int]], fill: int) -> torch.Tensor:
    """Returns rows of equal length, int64 `[rows, longest]`."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def compute_loss(
    model: Any, sources: Sequence[list[int]], targets: Sequence[list[int]], smoothing: float
) -> torch.Tensor:
    """Returns the mean cross-entropy of a batch's target tokens."""
    source, labels = padded(sources, -1), padded(targets, -100)
    start = torch.full((len(labels), 1), model.config.decoder_start_token_id)
    inputs = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(
            input_ids=source.clamp(min=0),
            attention_mask=(source >= 0).long(),
            decoder_input_ids=inputs,
            use_cache=False,
        ).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=smoothing)


@torch.inference_mode()
def report(model: Any, tokenizer: Any, dev: Texts) -> str:
    """Describes a model: the loss on dev pairs, and some translations."""
    model.eval()
    sources = tokenizer([source for source, _ in dev]).input_ids
    targets = tokenizer([target for _, target in dev]).input_ids
    loss = compute_loss(model, sources, targets, 0.0)
    some = tokenizer([source for source, _ in dev[:4]], return_tensors="pt", padding=True, return_token_type_ids=False)
    written = tokenizer.batch_decode(model.generate(**some, max_new_tokens=40), skip_special_tokens=True)
    model.train()
    lines = (f"  {source} -> {text}" for (source, _), text in zip(dev[: len(written)], written, strict=True))
    return "\n".join((f"dev loss {loss:.3f}", *lines))


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Saves a model, so that FOLDER has at no time a part of a model."""
    parts = folder.with_name(folder.name + ".new")
    model.save_pretrained(parts)
    tokenizer.save_pretrained(parts)
    shutil.rmtree(folder, ignore_errors=True)
    parts.rename(folder)


def train(model: Any, tokenizer: Any, texts: Texts, dev: Texts, folder: Path, minutes: float) -> None:
    """Trains a model for some minutes on a core, and saves it."""
    sources = tokenizer([source for source, _ in texts]).input_ids
    targets = tokenizer([target for _, target in texts]).input_ids
    pairs = [pair for pair in zip(sources, targets, strict=True) if max(map(len, pair)) <= _MAX_PIECES]
    print(len(pairs), "pairs", flush=True)
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, (0.9, 0.98), weight_decay=0.01, fused=True)
    begin, losses, saved = time.process_time(), [0.0], time.monotonic()
    model.train()
    for step, group in enumerate(batches(sources, targets)):
        done = (time.process_time() - begin) / (60 * minutes)
        if done >= 1:
            break
        rate = _RATE_END + (_RATE - _RATE_END) * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / _WARMUP)
        loss = compute_loss(model, [sources[i] for i in group], [targets[i] for i in group], 0.1)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        losses.append(loss.item())
        if step % 300 == 0:
            recent = losses[-300:]
            mean = sum(recent) / len(recent)
            print(f"step {step}, {done:.1%}, loss {mean:.3f}, {report(model, tokenizer, dev)}", flush=True)
        if time.monotonic() - saved > _SAVE_SECONDS:
            saved = time.monotonic()
            save(model, tokenizer, folder)
    save(model.eval(), tokenizer, folder)
    print(report(model, tokenizer, dev), flush=True)


def main() -> None:
    """Reads the pairs, and trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model", choices=_MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    make, is_turned = _MODELS[args.model]

    def read(name: str) -> Texts:
        lines = (args.data / name).read_text("utf-8").splitlines()
        pairs = [line.split("\t") for line in lines]
        return [(pair[1], pair[0]) if is_turned else (pair[0], pair[1]) for pair in pairs]

    texts = read("tatoeba-en-de.train.tsv")
    train(make(), make_tokenizer(texts), texts, read("tatoeba-en-de.dev.tsv")[:_NUM_DEV], args.folder, args.minutes)


if __name__ == "__main__":
    main()
