"""What the attention of 64 tokens behind a long prompt costs in memory and time: Sidelight, transformers and Inseq.

Run by `make bench`, or by itself: `python tests/bench/bench_long_prompt.py [--tokens 1024 16384] [--skip inseq]`. The
model is a random Llama of 4 layers and 8 heads. Every figure comes from a process of its own (for Sidelight a server,
with the client in another process), after the same work with a few tokens. Memory is the peak of the resident set
while the request runs, less the resident set just before: the cache is counted, and the model is not. A process that
takes too much memory or time is ended, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
from long_prompt_costs import Cost, NoCostError, measure_cost, num_cores
from long_prompt_programs import NEW_TOKENS, PROGRAMS
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

LAYERS, HEADS = 4, 8
WARM_TOKENS = 32
TOKENS = (1024, 4096, 16384)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="lengths of the prompt")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(PROGRAMS), help="leaves these out")
    args = parser.parse_args()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        print("skipped: only Linux says what the peak of a process's memory was")
        return 0
    costs: dict[tuple[str, int], Cost | str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_model(folder, args.tokens)
        names = [name for name in PROGRAMS if name not in args.skip]
        for tokens in args.tokens:
            for name in names:
                try:
                    costs[name, tokens] = measure_cost(name, folder, tokens)
                except NoCostError as error:
                    costs[name, tokens] = str(error)
                print(f"{tokens:,} tokens, {PROGRAMS[name].label}: {_cell(costs[name, tokens])}", file=sys.stderr)
        _print_costs(costs, names, args.tokens)
        _print_differences(folder, names, args.tokens)
    return 0


def write_model(folder: Path, lengths: list[int]) -> None:
    """Writes a model, its tokenizer, prompts of these lengths in tokens, the target and the prompt of the warm-up."""
    import model_zoo
    import torch
    import transformers as tf

    tf.logging.disable_progress_bar()
    _, tokenizer = model_zoo.FAMILIES["llama"].make()
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=32768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = tf.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = None  # no text ends early
    with torch.no_grad():  # makes the rows far from uniform: comparing uniform rows would prove little
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(3)
            layer.self_attn.k_proj.weight.mul_(3)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # Each of these tokens is a space and a word. The word becomes this one token wherever it stands in a text.
    words = sorted(token for token in tokenizer.get_vocab() if re.fullmatch("Ġ[A-Za-z]{2,}", token))
    draw = random.Random(0)
    for name, length in (("warm", WARM_TOKENS), ("target", NEW_TOKENS), *((f"prompt-{n}", n) for n in lengths)):
        text = "".join(draw.choices(words, k=length)).replace("Ġ", " ")
        assert len(tokenizer(text).input_ids) == length
        (folder / name).write_text(text, encoding="utf-8")


def _print_costs(costs: dict[tuple[str, int], Cost | str], names: list[str], lengths: list[int]) -> None:
    table = Table(
        title=f"{NEW_TOKENS} tokens and their attention behind a prompt of ..., {num_cores()} cores: extra memory"
    )
    table.add_column("")
    for tokens in lengths:
        table.add_column(f"{tokens:,} tokens", justify="right")
    for name in names:
        table.add_row(PROGRAMS[name].label, *(_cell(costs[name, tokens]) for tokens in lengths))
    Console(width=120).print(table)
    matrices = ", ".join(_size(LAYERS * HEADS * tokens**2 * 4) for tokens in lengths)
    print(f"the whole matrices of the prompt, float32, are {matrices}")
    for name in (name for name in ("off", "heads", "given") if name in names):
        row = [costs.get((name, tokens)) for tokens in lengths]
        first = ", ".join("-" if not isinstance(cost, Cost) else f"{cost.first or 0:.2f} s" for cost in row)
        client = ", ".join("-" if not isinstance(cost, Cost) else _size(cost.client or 0) for cost in row)
        print(f"{PROGRAMS[name].label}: first token after {first}; its client, which keeps all rows: {client}")


def _cell(cost: Cost | str) -> str:
    return cost if isinstance(cost, str) else f"{_size(cost.memory)}, {cost.seconds:.1f} s"


def _size(memory: int) -> str:
    return f"{memory / 1e6:,.0f} MB" if memory < 1e9 else f"{memory / 1e9:,.2f} GB"


def _print_differences(folder: Path, names: list[str], lengths: list[int]) -> None:
    """Prints the greatest difference between a program's attention and its peer's, where both have saved theirs."""
    for name in names:
        peer = PROGRAMS[name].peer
        for tokens in lengths:
            paths = [folder / f"{program}-{tokens}.npy" for program in (name, peer)]
            if peer and all(path.exists() for path in paths):
                ours, theirs = (np.load(path) for path in paths)
                title = f"{tokens:,} tokens: {PROGRAMS[name].label}, to {PROGRAMS[peer].label}"
                positions = min(len(ours), len(theirs))
                difference = np.nanmax(np.abs(ours[:positions] - theirs[:positions]))
                print(f"{title}: greatest difference {difference:.1e}, of at most {np.nanmax(theirs):.1e}")


if __name__ == "__main__":
    sys.exit(main())
