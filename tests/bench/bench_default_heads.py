"""Links by the default heads of models without calibration, against gold links: alignment error rates.

    python tests/bench/bench_default_heads.py SHARED_DATA [--model FOLDER {en-de,de-en}]... [--folder FOLDER]

SHARED_DATA has gold-de-en/. Without --model, the bundled model is measured, as if it had no calibration.
`train_small.py` trains other models.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from bench_links import diagonal, measure, measured_pairs, with_reference
from sidelight.server.alignment import AlignmentHead, AlignmentPreset, default_preset, parse_pharaoh
from sidelight.server.alignment.calibration import MeasuredPair
from sidelight.server.models import load


def read_gold(data: Path, model: Path | None, folder: Path, *, is_turned: bool) -> list[MeasuredPair]:
    """Returns the gold pairs with the rows of a model. `is_turned`: the model reads German."""

    def lines(name: str) -> list[str]:
        return (data / "gold-de-en" / name).read_text("utf-8").splitlines()

    texts = list(zip(lines("en.txt"), lines("de.txt"), strict=True))
    links = [[(link.target, link.source) for link in parse_pharaoh(line)] for line in lines("links.de-en.pharaoh")]
    if is_turned:
        texts = [(german, english) for english, german in texts]
        links = [[(german, english) for english, german in each] for each in links]
    pairs = measured_pairs(load(model), texts, folder, is_pretokenized=True)
    return [with_reference(*each) for each in zip(pairs, links, strict=True)]


def show(name: str, gold: list[MeasuredPair]) -> None:
    """Prints the lines of a model."""
    num_layers, num_heads = gold[0].rows["predicting"].shape[2:]
    default = default_preset(num_layers, num_heads)

    def heads(first: int, last: int, num: int = num_heads) -> tuple[AlignmentHead, ...]:
        return tuple(AlignmentHead(layer, head) for layer in range(first, last) for head in range(num))

    last = num_layers - 1
    for kind, chosen, pairs in (
        ("diagonal", heads(0, 1, 1), diagonal(gold)),
        ("last layer's first head", heads(last, last + 1, 1), gold),
        ("last layer's mean", heads(last, last + 1), gold),
        ("all layers' mean", heads(0, last + 1), gold),
        ("default heads", default.heads, gold),
    ):
        argmax = AlignmentPreset(chosen, special_tokens="keep", method="argmax", weights={"attention": 1.0})
        rates = (measure(preset, pairs).error_rate for preset in (argmax, replace(default, heads=chosen)))
        print("| " + " | ".join((name, kind, *(f"{rate:.3f}" for rate in rates))) + " |", flush=True)


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", nargs=2, action="append", default=[], metavar=("FOLDER", "DIRECTION"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sidelight-bench-default-heads")
    args = parser.parse_args()
    print("| model | heads | AER, argmax | AER, as the default decides |")
    print("|---|---|--:|--:|")
    models: list[tuple[Path | None, str]] = [(Path(path), direction) for path, direction in args.model]
    for path, direction in models or [(None, "en-de")]:
        name = "bundled" if path is None else path.name
        show(name, read_gold(args.data, path, args.folder, is_turned=direction == "de-en"))


if __name__ == "__main__":
    main()
