"""Beam search of Sidelight beside `generate(num_beams=4)` of transformers, with 1 and 8 streams on the bundled model.

Run by `make bench`. Sidelight answers over gRPC, with all cross-attention of the best hypothesis; `generate` runs in
this process, on as many sentences at once as there are streams, padded, without attention. Rounds alternate, so that a
noisy machine treats both alike; times are medians, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sidelight.client import Beam, Client, Decoding
from sidelight.client.cli.demo import bundled_server
from sidelight.server.models.loader import bundled_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
STREAMS = (1, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=32, help="how many sentences each round translates")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=4, help="how many hypotheses each step keeps")
    args = parser.parse_args()
    if not DATA.exists():
        print(f"skipped: {DATA} is not here")
        return 0
    sentences = [line.split("\t")[0] for line in DATA.read_text(encoding="utf-8").splitlines()[: args.sentences]]
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(bundled_model(), dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(bundled_model())
    table = Table("streams", "Sidelight, s", "generate, s", "times generate", "texts that are equal")
    with bundled_server() as (_, address), Client(address) as client:
        decoding = Decoding(Beam(args.width))

        def sidelight(num_streams: int) -> list[str]:
            with ThreadPoolExecutor(num_streams) as pool:
                return list(pool.map(lambda text: client.attribute(text, decoding=decoding).result().text, sentences))

        def generate(num_streams: int) -> list[str]:
            return _generate(model, tokenizer, sentences, num_streams, args.width)

        for num_streams in STREAMS:
            seconds, texts = _alternate([sidelight, generate], num_streams, args.rounds)
            ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds, strict=True))
            equal = sum(ours == theirs for ours, theirs in zip(*texts, strict=True))
            times = (f"{statistics.median(each):.2f}" for each in seconds)
            table.add_row(str(num_streams), *times, f"{ratio:.2f}", f"{equal} of {len(sentences)}")
    Console().print(table)
    return 0


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, sentences: Sequence[str], num_streams: int, width: int) -> list[str]:
    texts: list[str] = []
    for first in range(0, len(sentences), num_streams):
        batch = tokenizer(list(sentences[first : first + num_streams]), return_tensors="pt", padding=True)
        texts += tokenizer.batch_decode(model.generate(**batch, num_beams=width), skip_special_tokens=True)
    return texts


def _alternate(
    runs: Sequence[Callable[[int], list[str]]], num_streams: int, num_rounds: int
) -> tuple[list[list[float]], list[list[str]]]:
    """Runs the contenders in turns. Returns the seconds of each round, and the texts, of each contender."""
    texts = [run(num_streams) for run in runs]  # to warm up
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(num_rounds):
        for run, times in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run(num_streams)
            times.append(time.perf_counter() - began)
    return seconds, texts


if __name__ == "__main__":
    raise SystemExit(main())
