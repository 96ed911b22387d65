"""The random models that `engine.py` and `long_prompt.py` measure, written to SCRATCH/models.

The program `python models.py OUT SCRATCH` makes all models. Then `sidelight kernels build` compiles the kernels that
their servers launch on this machine's GPU, while the first parts of the run are under way.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import model_zoo
import torch
import transformers as tf
import workloads
from workloads import Workload

TOKENS = 30  # of each source and each target


@dataclass(frozen=True)
class Sizes:
    """How large the models are."""

    width: int
    layers: int
    vocabulary: int
    llama_width: int
    llama_layers: int
    positions: int


FULL = Sizes(width=1024, layers=12, vocabulary=256_206, llama_width=2048, llama_layers=16, positions=32_768)
TINY = Sizes(width=32, layers=2, vocabulary=6_100, llama_width=64, llama_layers=2, positions=256)


def folder_of(scratch: Path, name: str) -> Path:
    """Where a model is, or will be."""
    return scratch / "models" / name


def workload(name: str, scratch: Path, streams: int) -> Workload:
    """A model that is there (see `wait_for`), with so many sources of token ids."""
    folder = folder_of(scratch, name)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 6000, (streams, TOKENS - 1), generator=generator).tolist()
    return Workload(name, name, folder, [[*row, 0] for row in ids], TOKENS, all_at_once=True)


def make(name: str, folder: Path, *, is_dry: bool) -> None:
    """Writes a model: "opus" (74M, opus-mt's), "nllb" (615M, NLLB-600M's) or "llama" (1B, Llama 3.2's)."""
    unfinished = folder.with_name(f"{name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    torch.manual_seed(0)
    if name == "opus":
        workloads.write_opus_model(unfinished, sharpness=0.05, tiny=is_dry)
    elif name == "nllb":
        _write_nllb(unfinished, TINY if is_dry else FULL)
    else:
        _write_llama(unfinished, TINY if is_dry else FULL)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)


def wait_for(name: str, scratch: Path, *, is_dry: bool) -> None:
    """Waits for the process that makes models; makes the model here where that process has not made it in time."""
    until = time.monotonic() + (0 if is_dry else 20)
    while not folder_of(scratch, name).exists():
        if time.monotonic() > until:
            make(name, folder_of(scratch, name), is_dry=is_dry)
            return
        time.sleep(0.2)


def _write_nllb(folder: Path, sizes: Sizes) -> None:
    padding = 2  # not late in the vocabulary: the position table has a row for it
    config = tf.M2M100Config(
        vocab_size=sizes.vocabulary,
        d_model=sizes.width,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_attention_heads=16,
        decoder_attention_heads=16,
        encoder_ffn_dim=4 * sizes.width,
        decoder_ffn_dim=4 * sizes.width,
        max_position_embeddings=1024 if sizes is FULL else 64,
        pad_token_id=padding,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    _save(tf.M2M100ForConditionalGeneration, config, folder)
    workloads.write_tokenizer(folder, sizes.vocabulary, padding)


def _write_llama(folder: Path, sizes: Sizes) -> None:
    _, tokenizer = model_zoo.FAMILIES["llama"].make()
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.llama_width,
        intermediate_size=4 * sizes.llama_width,
        num_hidden_layers=sizes.llama_layers,
        num_attention_heads=sizes.llama_width // 64 if sizes is FULL else 4,
        num_key_value_heads=8 if sizes is FULL else 2,
        max_position_embeddings=sizes.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(tf.LlamaForCausalLM, config, folder)
    tokenizer.save_pretrained(folder)


def _save(model: type, config: tf.PretrainedConfig, folder: Path) -> None:
    """Writes a model of normal weights in bfloat16. A GPU draws 600 million numbers at once, a CPU in half a minute."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = model(config).to(torch.bfloat16)
    made.generation_config.eos_token_id = config.eos_token_id
    made.cpu().save_pretrained(folder)


def words(folder: Path) -> list[str]:
    """Tokens of the Llama's vocabulary that are a word with a space before it: one token wherever they stand."""
    vocabulary = tf.AutoTokenizer.from_pretrained(folder).get_vocab()
    return sorted(token.replace("Ġ", " ") for token in vocabulary if re.fullmatch("Ġ[A-Za-z]{2,}", token))


def main() -> int:
    scratch = Path(sys.argv[2])
    os.nice(5)  # the parts come first
    os.environ["OMP_NUM_THREADS"] = "2"
    for name in ("opus", "nllb", "llama"):
        make(name, folder_of(scratch, name), is_dry=False)
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    building: list[subprocess.Popen[bytes]] = []
    for name in ("opus", "nllb", "llama"):
        options = ["--dtype", "bfloat16", "--target", target, "--cache", os.environ["TRITON_CACHE_DIR"]]
        building.append(subprocess.Popen(["sidelight", "kernels", "build", str(folder_of(scratch, name)), *options]))
    return max(process.wait() for process in building)


if __name__ == "__main__":
    sys.exit(main())
