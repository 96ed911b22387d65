"""Links of the bundled model against gold links and against a statistical aligner: error rate, precision, recall.

    python tests/bench/bench_links.py SHARED_DATA [--folder FOLDER]

SHARED_DATA has gold-de-en/ and the Tatoeba files. FOLDER keeps rows for the next run. The gold pairs are read as they
stand: lower-cased, with words that white space separates. The lexicon is learnt from the Tatoeba pairs alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sidelight.server.alignment import (
    AlignmentHead,
    AlignmentPreset,
    Lexicon,
    Linker,
    LinkFeature,
    WordedText,
    parse_pharaoh,
)
from sidelight.server.alignment.calibration import (
    WEIGHTS,
    LinkCounts,
    MeasuredPair,
    align_statistically,
    choose_preset,
    count_links,
    learn_lexicon,
)
from sidelight.server.entrypoints.calibration_rows import RowFiles, TextPair, collect_rows
from sidelight.server.models import LoadedModel, load

_NUM_MEASURED = 1000
_NUM_FOLDS = 5
_ALONE: tuple[Mapping[LinkFeature, float], ...] = ({"attention": 1.0},)
_PRIOR: tuple[Mapping[LinkFeature, float], ...] = ({"lexicon": 1.0}, {"lexicon": 1.0, "spelling": 5.0})
_BOTH = tuple(weights for weights in WEIGHTS if "lexicon" in weights)


def measure(preset: AlignmentPreset, pairs: Sequence[MeasuredPair]) -> LinkCounts:
    """Counts the links of a preset, as a server links: from the weighted mean of the heads' rows."""
    linker = Linker(preset)
    found: list[np.ndarray] = []
    for pair in pairs:
        rows = pair.rows[preset.row]
        if preset.special_tokens == "renormalize":
            rows = rows * ~np.array([token.special for token in pair.source.tokens])[:, None, None]
            rows = rows / np.maximum(rows.sum(1, keepdims=True), 1e-9)
        weights = np.array([head.weight for head in preset.heads])
        mean = sum(head.weight * rows[..., head.layer, head.head] for head in preset.heads) / weights.sum()
        links = np.zeros(pair.reference.shape, np.bool_)
        for link in linker.link(mean, pair.source, pair.target):
            links[link.source, link.target] = True
        found.append(links)
    return count_links(zip(found, (pair.reference for pair in pairs), strict=True))


def cross_validate(
    pairs: Sequence[MeasuredPair], lexicon: Lexicon | None, weights: Sequence[Mapping[LinkFeature, float]]
) -> LinkCounts:
    """Counts the links of each fold by a preset that was chosen on the others."""
    total = np.zeros(3, np.int64)
    for fold in range(_NUM_FOLDS):
        rest = [pair for index, pair in enumerate(pairs) if index % _NUM_FOLDS != fold]
        total += measure(choose_preset(rest, lexicon, "gold", weights=weights), pairs[fold::_NUM_FOLDS])
    return LinkCounts(*map(int, total))


def measured_pairs(
    loaded: LoadedModel, texts: Sequence[tuple[str, str]], folder: Path, *, is_pretokenized: bool
) -> list[MeasuredPair]:
    """Returns pairs with their rows, and without reference links."""
    tokenizer = loaded.tokenizer
    pairs: list[TextPair] = []
    for source, target in texts:
        encoded = tokenizer.encode_source(source), tokenizer.encode_target(target)
        pairs.append(
            TextPair(*(WordedText.of_text(each.text, each.tokens, is_pretokenized=is_pretokenized) for each in encoded))
        )
    rows = collect_rows(loaded, pairs, RowFiles(folder, loaded, pairs), lambda _: None)
    measured: list[MeasuredPair] = []
    for pair, array in zip(pairs, rows, strict=True):
        predicting = array.astype(np.float32)
        both = {"predicting": predicting, "reading": np.concatenate([predicting[1:], predicting[-1:]])}
        nothing = np.zeros((len(pair.source.words), len(pair.target.words)), np.bool_)
        measured.append(MeasuredPair(pair.source, pair.target, both, nothing))
    return measured


def with_reference(pair: MeasuredPair, links: Sequence[tuple[int, int]]) -> MeasuredPair:
    """Returns a pair with its reference links: pairs of source and target."""
    reference = np.zeros_like(pair.reference)
    for source, target in links:
        reference[source, target] = True
    return replace(pair, reference=reference)


def diagonal(pairs: Sequence[MeasuredPair]) -> list[MeasuredPair]:
    """Returns pairs whose one head looks along the diagonal of the words."""
    turned: list[MeasuredPair] = []
    for pair in pairs:
        source, target = pair.source.shares, pair.target.shares
        places = np.arange(target.shape[1]) * (source.shape[1] - 1) / max(1, target.shape[1] - 1)
        words = np.zeros((target.shape[1], source.shape[1]), np.float32)
        words[np.arange(len(words)), np.rint(places).astype(int)] = 1
        rows = target @ words @ (source / np.maximum(source.sum(0), 1e-9)).T
        turned.append(replace(pair, rows={"predicting": rows[..., None, None], "reading": rows[..., None, None]}))
    return turned


def show(name: str, alone: LinkCounts | None, both: LinkCounts | None) -> None:
    """Prints a line of the table."""
    cells = (
        "" if each is None else f"{each.error_rate:.3f} {each.precision:.3f} {each.recall:.3f}"
        for each in (alone, both)
    )
    print("| {:48} | {:17} | {:17} |".format(name, *cells), flush=True)


def measure_gold(gold: Sequence[MeasuredPair], train: Sequence[MeasuredPair], lexicon: Lexicon) -> None:
    """Prints the table of the gold pairs."""
    num_layers, num_heads = gold[0].rows["predicting"].shape[2:]
    last = num_layers - 1
    mean = tuple(AlignmentHead(last, head) for head in range(num_heads))
    every = [(AlignmentHead(layer, head),) for layer in range(num_layers) for head in range(num_heads)]

    def alone(heads: tuple[AlignmentHead, ...]) -> AlignmentPreset:
        return AlignmentPreset(heads, method="argmax", weights=_ALONE[0], special_tokens="keep")

    def both(heads: tuple[AlignmentHead, ...]) -> AlignmentPreset:
        return AlignmentPreset(
            heads, "predicting", "keep", "optimal_transport", {"optimal_transport": 0.5}, _BOTH[0], lexicon
        )

    best = min(every, key=lambda heads: measure(alone(heads), gold).error_rate)
    print("| gold-de-en: AER, precision, recall               | attention alone   | with the lexicon  |")
    print("|---|---|---|")
    for name, heads, pairs in (
        ("diagonal", every[0], diagonal(gold)),
        ("last layer's first head, argmax", (AlignmentHead(last, 0),), gold),
        ("last layer's mean, argmax", mean, gold),
        (f"best single head {best[0].layer}.{best[0].head} (chosen on gold), argmax", best, gold),
    ):
        show(name, measure(alone(heads), pairs), measure(both(heads), pairs))
    default = AlignmentPreset(tuple(head for heads in every[num_heads:] for head in heads), weights=_ALONE[0])
    show("default without calibration", measure(default, gold), None)
    chosen = [choose_preset(train, lexicon, "eflomal", weights=weights) for weights in (_ALONE, _BOTH, _PRIOR)]
    show("calibrated without gold", *(measure(preset, gold) for preset in chosen[:2]))
    show("calibrated with gold, five folds", *(cross_validate(gold, lexicon, weights) for weights in (_ALONE, _BOTH)))
    show("the prior alone, calibrated without gold", None, measure(chosen[2], gold))
    show("the prior alone, calibrated with gold, five folds", None, cross_validate(gold, lexicon, _PRIOR))


def measure_agreement(
    dev: Sequence[MeasuredPair], words: tuple[list[list[str]], list[list[str]]], presets: Mapping[str, AlignmentPreset]
) -> None:
    """Prints the agreement with a statistical aligner that has seen the training pairs."""
    sources = [pair.source.folded for pair in dev] + words[0]
    targets = [pair.target.folded for pair in dev] + words[1]
    links, name = align_statistically(sources, targets, len(dev))
    pairs = [with_reference(pair, [link[:2] for link in each]) for pair, each in zip(dev, links, strict=True)]
    for kind, preset in presets.items():
        counts = measure(preset, pairs)
        print(
            f"{len(pairs)} dev sentences against {name}, {kind}: F1 {1 - counts.error_rate:.3f}, "
            f"precision {counts.precision:.3f}, recall {counts.recall:.3f}",
            flush=True,
        )


def main() -> None:
    """Measures, and prints tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sidelight-bench-links")
    args = parser.parse_args()
    loaded = load()

    def read(name: str) -> list[tuple[str, str]]:
        lines = (args.data / name).read_text("utf-8").splitlines()
        return [(fields[0], fields[1]) for fields in (line.split("\t") for line in lines)]

    def lines(name: str) -> list[str]:
        return (args.data / "gold-de-en" / name).read_text("utf-8").splitlines()

    train_texts = read("tatoeba-en-de.train.tsv")
    chosen = [index * len(train_texts) // _NUM_MEASURED for index in range(_NUM_MEASURED)]
    gold_texts = list(zip(lines("en.txt"), lines("de.txt"), strict=True))
    gold_links = [[(link.target, link.source) for link in parse_pharaoh(line)] for line in lines("links.de-en.pharaoh")]
    gold = measured_pairs(loaded, gold_texts, args.folder, is_pretokenized=True)
    gold = [with_reference(*each) for each in zip(gold, gold_links, strict=True)]
    train = measured_pairs(loaded, [train_texts[index] for index in chosen], args.folder, is_pretokenized=False)
    dev = measured_pairs(loaded, read("tatoeba-en-de.dev.tsv"), args.folder, is_pretokenized=False)
    left_out = set(chosen)
    others = [pair for index, pair in enumerate(train_texts) if index not in left_out]
    words = tuple([WordedText.of_text(pair[side], ()).folded for pair in others] for side in (0, 1))
    lexicon = learn_lexicon(*words)
    sides = ([pair.source.folded for pair in train] + words[0], [pair.target.folded for pair in train] + words[1])
    links = align_statistically(*sides, len(train))[0]
    train = [with_reference(pair, [link[:2] for link in each]) for pair, each in zip(train, links, strict=True)]
    measure_gold(gold, train, lexicon)
    alone = choose_preset(train, None, "eflomal", weights=_ALONE)
    presets = {"attention alone": alone}
    if loaded.alignment is not None:
        presets["as the bundled model ships"] = loaded.alignment
    measure_agreement(dev, (words[0], words[1]), presets)


if __name__ == "__main__":
    main()
