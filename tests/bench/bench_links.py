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
    STATES_WEIGHTS,
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
_SPELLING: tuple[Mapping[LinkFeature, float], ...] = ({"attention": 1.0, "spelling": 5.0},)
_PRIOR: tuple[Mapping[LinkFeature, float], ...] = ({"lexicon": 1.0}, {"lexicon": 1.0, "spelling": 5.0})
_BOTH = tuple(weights for weights in WEIGHTS if "lexicon" in weights)


def measure(preset: AlignmentPreset, pairs: Sequence[MeasuredPair]) -> LinkCounts:
    """Counts the links of a preset, as a server links: from the weighted mean of the heads' rows."""
    linker = Linker(preset)
    has_states = linker.has_encoder_states
    found: list[np.ndarray] = []
    for pair in pairs:
        rows = pair.rows[preset.row]
        if preset.special_tokens == "renormalize":
            rows = rows * ~np.array([token.special for token in pair.source.tokens])[:, None, None]
            rows = rows / np.maximum(rows.sum(1, keepdims=True), 1e-9)
        weights = np.array([head.weight for head in preset.heads])
        mean = sum(head.weight * rows[..., head.layer, head.head] for head in preset.heads) / weights.sum()
        links = np.zeros(pair.reference.shape, np.bool_)
        states = pair.encoder_states.astype(np.float32) if has_states and pair.encoder_states is not None else None
        for link in linker.link(mean, pair.source, pair.target, states):
            links[link.source, link.target] = True
        found.append(links)
    return count_links((links, pair.reference, pair.possible) for links, pair in zip(found, pairs, strict=True))


def cross_validate(
    pairs: Sequence[MeasuredPair], lexicon: Lexicon | None, weights: Sequence[Mapping[LinkFeature, float]]
) -> LinkCounts:
    """Counts the links of each fold by a preset that was chosen on the others."""
    total = np.zeros(4, np.int64)
    for fold in range(_NUM_FOLDS):
        rest = [pair for index, pair in enumerate(pairs) if index % _NUM_FOLDS != fold]
        preset = choose_preset(rest, lexicon, "gold", weights=weights, states_weights=())
        total += measure(preset, pairs[fold::_NUM_FOLDS])
    return LinkCounts(*map(int, total))


def measured_pairs(
    loaded: LoadedModel, texts: Sequence[tuple[str, str]], folder: Path, *, is_pretokenized: bool
) -> list[MeasuredPair]:
    """Returns pairs with their rows, and without reference links."""
    pairs = [TextPair.of_texts(loaded, *text, is_pretokenized=is_pretokenized) for text in texts]
    collected = collect_rows(loaded, pairs, RowFiles(folder, loaded, pairs), lambda _: None)
    measured: list[MeasuredPair] = []
    for pair, found in zip(pairs, collected, strict=True):
        predicting = found.rows.astype(np.float32)
        both = {"predicting": predicting, "reading": np.concatenate([predicting[1:], predicting[-1:]])}
        nothing = np.zeros((len(pair.source.words), len(pair.target.words)), np.bool_)
        measured.append(MeasuredPair(pair.source, pair.target, both, nothing, found.encoder_states))
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
    chosen = [choose_without_gold(train, lexicon, weights) for weights in (_ALONE, _BOTH, _PRIOR)]
    show("calibrated without gold", *(measure(preset, gold) for preset in chosen[:2]))
    show("calibrated with gold, five folds", *(cross_validate(gold, lexicon, weights) for weights in (_ALONE, _BOTH)))
    show("the prior alone, calibrated without gold", None, measure(chosen[2], gold))
    show("the prior alone, calibrated with gold, five folds", None, cross_validate(gold, lexicon, _PRIOR))


def measure_states(gold: Sequence[MeasuredPair], train: Sequence[MeasuredPair], lexicon: Lexicon) -> None:
    """Prints what the encoder's states add to other features, and what `sidelight calibrate` says of them."""
    print("| gold-de-en: AER, precision, recall               | without states    | with states       |")
    print("|---|---|---|")
    for name, weights in (
        ("nothing else", ({},)),
        ("attention", _ALONE),
        ("attention and spelling", _SPELLING),
        ("lexicon and spelling", _PRIOR),
        ("attention, lexicon and spelling", _BOTH),
    ):
        extended = [{**choice, "encoder_states": weight} for choice in weights for weight in STATES_WEIGHTS]
        for reference, compute in (
            ("without gold", lambda tried: measure(choose_without_gold(train, lexicon, tried), gold)),
            ("with gold, five folds", lambda tried: cross_validate(gold, lexicon, tried)),
        ):
            without = compute(weights) if weights[0] else None
            show(f"{name}, {reference}", without, compute(extended))
    for reference, pairs, table in (
        ("eflomal", train, lexicon),
        ("gold", gold, lexicon),
        ("eflomal", train, None),
        ("gold", gold, None),
    ):
        preset = choose_preset(pairs, table, reference)
        assert preset.figures is not None
        without, with_states = preset.figures.states_error_rates or (0.0, 0.0)
        choice = "uses" if "encoder_states" in preset.weights else "leaves out"
        print(
            f"calibrate on {len(pairs)} pairs against {reference}, {'no' if table is None else 'with a'} lexicon, "
            f"{choice} the states: "
            f"error rate {without:.4f} without, {with_states:.4f} with them, cross-validated"
        )


def choose_without_gold(
    train: Sequence[MeasuredPair], lexicon: Lexicon, weights: Sequence[Mapping[LinkFeature, float]]
) -> AlignmentPreset:
    """Returns the preset that agrees best with eflomal."""
    return choose_preset(train, lexicon, "eflomal", weights=weights, states_weights=())


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
    measure_states(gold, train, lexicon)
    alone = choose_preset(train, None, "eflomal", weights=_ALONE, states_weights=())
    presets = {"attention alone": alone}
    if loaded.alignment is not None:
        presets["as the bundled model ships"] = loaded.alignment
    measure_agreement(dev, (words[0], words[1]), presets)


if __name__ == "__main__":
    main()
