"""How well signals tell damaged targets from good ones: the AUROC of each signal.

Run by `make bench`, or by itself: `python tests/bench/bench_signals.py [--pairs 1000]`. The pairs are the dev sentences
of Tatoeba whose German side has five words or more, on the bundled model, with their targets given. A damaged target is
the reference after one of these changes, with a fixed seed: its end is cut off, or a part inside is cut out (30 to 50%
of the words); two to four words come twice or four times in a row; or the target is that of another sentence of about
the same length. An AUROC of 1 tells all damaged targets from all good ones, 0.5 tells nothing, and below 0.5 the signal
moves the other way. The last row is a score, to compare with: the mean cross-entropy of the tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import numpy as np
from harness import serving
from rich.console import Console
from rich.table import Table
from sidelight.client import Capture, Client, Signals
from sidelight.server.models.loader import load
from workloads import DATA

# Whether a damaged target is expected to have less of a signal.
IS_LESS = {"coverage"}
DAMAGES = ("end cut off", "part cut out", "words twice", "words four times", "another target")
CROSS_ENTROPY = "cross-entropy of the tokens"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1000, help="the most pairs")
    args = parser.parse_args()
    if not DATA.is_file():
        print(f"skipped: there is no {DATA}")
        return 0
    lines = [line.split("\t")[:2] for line in DATA.read_text(encoding="utf-8").splitlines()]
    pairs = [(source, target) for source, target in lines if len(target.split()) >= 5][: args.pairs]
    targets = damage([target for _, target in pairs])
    sources = [source for source, _ in pairs]
    with serving(load()) as address, Client(address) as client:
        numbers = {name: measure(client, sources, texts) for name, texts in targets.items()}
    table = Table(f"{len(pairs)} pairs", *DAMAGES, "of good targets")
    for signal, good in numbers["good"].items():
        sign = -1 if signal in IS_LESS else 1
        cells = [f"{auroc(sign * numbers[name][signal], sign * good):.2f}" for name in DAMAGES]
        table.add_row(signal, *cells, f"{good.mean():.2f}")
    Console(width=150).print(table)
    return 0


def damage(targets: list[str]) -> dict[str, list[str]]:
    """The targets as they are, and damaged in each way."""
    rng = random.Random(21)
    order = sorted(range(len(targets)), key=lambda number: (len(targets[number].split()), rng.random()))
    other = {number: order[(place + 1) % len(order)] for place, number in enumerate(order)}
    damaged: dict[str, list[str]] = {name: [] for name in ("good", *DAMAGES)}
    for number, target in enumerate(targets):
        words = target.split()
        num_cut = max(2, round(len(words) * rng.uniform(0.3, 0.5)))
        first_cut = rng.randint(0, len(words) - num_cut)
        num_repeated = min(len(words) - 1, rng.randint(2, 4))
        first = rng.randint(0, len(words) - num_repeated)
        end = first + num_repeated
        variants = {
            "good": words,
            "end cut off": words[: len(words) - num_cut],
            "part cut out": words[:first_cut] + words[first_cut + num_cut :],
            "words twice": words[:end] + words[first:end] + words[end:],
            "words four times": words[:end] + 3 * words[first:end] + words[end:],
            "another target": targets[other[number]].split(),
        }
        for name, variant in variants.items():
            damaged[name].append(" ".join(variant))
    return damaged


def measure(client: Client, sources: list[str], targets: list[str]) -> dict[str, np.ndarray]:
    """Each signal of all pairs, float64 `[pairs]`."""
    names = [field.name for field in dataclasses.fields(Signals)]
    found: dict[str, list[float]] = {name: [] for name in (*names, CROSS_ENTROPY)}
    texts = [(source, {"target": target}) for source, target in zip(sources, targets, strict=True)]
    options = {"signals": True, "capture": Capture(none=True), "scores": ["cross_entropy"]}
    for result in client.attribute_many(texts, **options):
        assert result.attribution is not None, result.error
        signals = result.attribution.signals
        for name in names:
            found[name].append(getattr(signals, name) or 0.0)
        found[CROSS_ENTROPY].append(float(result.attribution.scores["cross_entropy"].mean()))
    print(f"{len(targets)} pairs", file=sys.stderr)
    return {name: np.array(values, np.float64) for name, values in found.items()}


def auroc(damaged: np.ndarray, good: np.ndarray) -> float:
    """The chance that a damaged target has a greater number than a good one. Equal numbers count half."""
    ordered = np.sort(good)
    below, up_to = np.searchsorted(ordered, damaged, "left"), np.searchsorted(ordered, damaged, "right")
    return float((below + up_to).mean() / 2 / len(good))


if __name__ == "__main__":
    sys.exit(main())
