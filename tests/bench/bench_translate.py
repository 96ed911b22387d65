"""Translates 200 sentences with all their attention by `sidelight attribute --file` and by Inseq.

Run by `make bench`. Prints BLEU, tokens per second and how far the two results are apart. Rounds alternate, so that a
noisy machine treats both alike; times are medians. Both write Inseq's JSON with cross-attention, decoder and encoder
self-attention of every layer and head.
"""

from __future__ import annotations

import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sacrebleu
import torch
from rich.console import Console
from rich.table import Table
from sidelight.client.cli.demo import bundled_server
from sidelight.server.models.loader import bundled_model

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import inseq_peer

DATA = Path(__file__).parents[3] / "shared" / "data" / "tatoeba-en-de.dev.tsv"
COMMAND = str(Path(sys.executable).with_name("sidelight"))
SENTENCES, ROUNDS = 200, 5


def main() -> int:
    if not DATA.exists():
        print(f"skipped: {DATA} is not here")
        return 0
    rows = [line.split("\t") for line in DATA.read_text(encoding="utf-8").splitlines()[:SENTENCES]]
    sources, references = [row[0] for row in rows], [row[1:] for row in rows]
    with tempfile.TemporaryDirectory() as folder, bundled_server() as (_, address):
        here = Path(folder)
        (here / "in.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
        model = _inseq()
        runs: dict[str, Callable[[], list[str]]] = {
            "Sidelight": lambda: _sidelight(address, here / "in.txt", here / "sidelight.json"),
            "Inseq 0.7.1": lambda: _run_inseq(model, sources, here / "inseq.json"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        texts: dict[str, list[str]] = {}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                began = time.perf_counter()
                texts[name] = run()
                seconds[name].append(time.perf_counter() - began)
        _report(seconds, texts, references, _tokens(here / "sidelight.json"))
        _compare(here, model, sources)
    return 0


def _sidelight(address: str, source: Path, out: Path) -> list[str]:
    arguments = ["attribute", "--file", str(source), "--address", address, "--save", str(out)]
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _inseq() -> Any:
    import inseq

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    # Sidelight serves the model in float32, too.
    return inseq.load_model(str(bundled_model()), "attention", model_kwargs={"dtype": torch.float32})


def _run_inseq(model: Any, sources: list[str], out: Path) -> list[str]:
    from inseq.data import merge_attributions

    # One sentence at a time: Inseq attributes encoder-decoders so in any case, and for a padded batch it generates
    # other texts than for the sentences alone (BLEU 5 instead of 47 on these sentences).
    outputs = [model.attribute(source, attribute_target=True, show_progress=False) for source in sources]
    output = merge_attributions(outputs)
    output.save(out, overwrite=True)
    return output.info["generated_texts"]


def _load(path: Path) -> list[Any]:
    from inseq import FeatureAttributionOutput

    return FeatureAttributionOutput.load(path).sequence_attributions


def _tokens(path: Path) -> int:
    return sum(sequence.attr_pos_end - sequence.attr_pos_start for sequence in _load(path))


def _report(
    seconds: dict[str, list[float]], texts: dict[str, list[str]], references: list[list[str]], tokens: int
) -> None:
    table = Table(title=f"{SENTENCES} sentences, {tokens} tokens, {os.cpu_count()} cores, medians of {ROUNDS}")
    for column in ("", "seconds", "tokens/s", "times Inseq", "BLEU"):
        table.add_column(column, justify="left" if not column else "right")
    width = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(width)]
    base = statistics.median(seconds["Inseq 0.7.1"])
    for name, times in seconds.items():
        median = statistics.median(times)
        bleu = sacrebleu.corpus_bleu(texts[name], streams).score
        table.add_row(name, f"{median:.2f}", f"{tokens / median:.0f}", f"{base / median:.1f}", f"{bleu:.1f}")
    Console().print(table)


def _compare(here: Path, model: Any, sources: list[str]) -> None:
    """Prints the greatest difference of the attentions, for sentences with the same tokens."""
    ours = _load(here / "sidelight.json")
    print(f"greatest difference to Inseq as it is:                {_difference(ours, _load(here / 'inseq.json'))}")
    inseq_peer.unscale_targets(model)
    _run_inseq(model, sources, here / "corrected.json")
    print(f"to Inseq with the decoder's embeddings scaled once:    {_difference(ours, _load(here / 'corrected.json'))}")


def _difference(ours: list[Any], theirs: list[Any]) -> str:
    greatest = {"cross": 0.0, "decoder_self": 0.0, "encoder_self": 0.0}
    same = 0
    for a, b in zip(ours, theirs, strict=True):
        if [token.id for token in a.target] != [token.id for token in b.target]:
            continue
        same += 1
        for kind, x, y in (
            ("cross", a.source_attributions, b.source_attributions),
            ("decoder_self", a.target_attributions, b.target_attributions),
            ("encoder_self", *(s.sequence_scores["encoder_self_attentions"] for s in (a, b))),
        ):
            greatest[kind] = max(greatest[kind], float(np.nanmax(np.abs(x.numpy() - y.numpy()))))
    parts = ", ".join(f"{kind} {value:.1e}" for kind, value in greatest.items())
    return f"{parts} ({same} of {len(ours)} with the same tokens)"


if __name__ == "__main__":
    sys.exit(main())
